//! A model and what is done with it.

use std::cell::{Cell, RefCell};

use js_sys::Function;
use modegpt::architecture::WeightProvider;
use modegpt::compress::{Curves, LayerReport, Methods, Plan, Ridges, Rounding};
use modegpt::evaluation::SamplerOptions;
use modegpt::in_memory::{self, Observation, Observed, SparsityRequest};
use modegpt::text_tools::Corpus;
use modegpt::{AllocationChoice, Calibration, PlanRequest, Reporter, Silent, activation_spectra, evaluate, write};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::archive::{Archive, Archived};
use super::store::{Store, Stored};
use super::{Checkpoint, Device, Files, from_json, sentence, to_json};
use crate::protocol::{CalibrationRequest, EvaluationRequest, StatisticsSummary, WriteRequest, WriteResult};

/// A model that can be looked at, run and compressed.
#[wasm_bindgen]
pub struct Model {
    model: modegpt::Model,
}

/// What calibration learnt of a model, and on which samples.
#[wasm_bindgen]
pub struct Statistics {
    calibration: Calibration,
    seen: Observed,
    /// Error curves do not depend on the sparsity: those made last, and what for.
    curves: RefCell<Option<(CurvesKey, Curves)>>,
}

type CurvesKey = (Methods, Option<Rounding>, Ridges);

#[wasm_bindgen]
impl Model {
    /// Opens the model in `files`.
    ///
    /// # Errors
    /// Which file is wrong, and what with it.
    pub fn open(files: Files) -> Result<Self, String> {
        Ok(Self { model: modegpt::Model::open(files.into_source()).map_err(sentence)? })
    }

    /// Opens the model in `store`, whose bytes are read where they lie and not kept.
    ///
    /// # Errors
    /// Which file is wrong, and what with it.
    #[wasm_bindgen(js_name = openStore)]
    pub fn open_store(store: Store, place: String) -> Result<Self, String> {
        Ok(Self { model: modegpt::Model::open(Stored::source(store, place)).map_err(sentence)? })
    }

    /// What is known of the model from its weights alone.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::of(self.model.checkpoint.clone())
    }

    /// Spectra and scores of a layer in the metric of the data, as JSON.
    ///
    /// # Errors
    /// That there is no such layer, or a factorisation failed.
    #[wasm_bindgen(js_name = activationSpectra)]
    pub fn activation_spectra(&self, layer: usize, statistics: &Statistics, ridge: f64) -> Result<String, String> {
        let seen = statistics.seen.statistics.get(layer).ok_or_else(|| format!("layer {layer} was not observed"))?;
        let config = self.model.config();
        let shape = config.layers.get(layer).ok_or_else(|| format!("there is no layer {layer}"))?;
        let weights = self.model.checkpoint.layer(layer).map_err(sentence)?.into_dense().map_err(sentence)?;
        let spectra = activation_spectra(config, shape, &weights, seen, ridge);
        to_json(&spectra.map_err(sentence)?)
    }

    /// Observes the model on samples of `text`. `request` is a [`CalibrationRequest`]; `on_progress(done, of)`.
    ///
    /// # Errors
    /// What is wrong with request or text, or what the device said.
    pub async fn calibrate(
        &self,
        device: &Device,
        text: String,
        request: String,
        on_progress: Function,
    ) -> Result<Statistics, String> {
        let request: CalibrationRequest = from_json(&request)?;
        let corpus = Corpus::from_plain("calibration text", &text).map_err(sentence)?;
        let calibration = Calibration::draw(&self.model, &[corpus], request.into()).map_err(sentence)?;
        let (collect, gradient_tokens) = in_memory::needs(request.mode);
        let observation = Observation {
            model: &self.model,
            calibration: &calibration,
            compute: &device.compute,
            gram_path: device.gram_path,
            collect,
            gradient_tokens,
            batch_tokens: request.batch_tokens,
            reporter: &Listener::new(on_progress),
        };
        let seen = observation.run().await.map_err(sentence)?;
        Ok(Statistics { calibration, seen, curves: RefCell::default() })
    }

    /// A plan, as JSON, by what was observed. `request` is a [`SparsityRequest`].
    ///
    /// # Errors
    /// What is wrong with the request, or why it cannot be met.
    pub fn plan(&self, statistics: &Statistics, request: &str) -> Result<String, String> {
        let request = PlanRequest::from(from_json::<SparsityRequest>(request)?);
        let key = (request.methods, request.rounding, request.ridges);
        let kept = statistics.curves.borrow().as_ref().filter(|(of, _)| *of == key).map(|(_, curves)| curves.clone());
        let curves = match kept {
            Some(curves) if request.allocation == AllocationChoice::ErrorCurves => Some(curves),
            _ => in_memory::curves(&self.model, &statistics.seen, &request, &Silent).map_err(sentence)?,
        };
        if let Some(curves) = &curves {
            *statistics.curves.borrow_mut() = Some((key, curves.clone()));
        }
        Ok(in_memory::plan(&self.model, &statistics.seen, curves, &request).map_err(sentence)?.to_json())
    }

    /// Applies a plan, perhaps edited, and gives what it cost, layer by layer, as JSON. What a folder on disk would hold
    /// goes to `archive`; `on_layer(report)` is given every layer's report as JSON when it is done.
    ///
    /// # Errors
    /// What is wrong with the plan, which layer cannot be compressed, or what the archive threw.
    pub fn compress(
        &self,
        statistics: &Statistics,
        plan: &str,
        archive: Archive,
        on_layer: &Function,
    ) -> Result<String, String> {
        let plan = Plan::from_json(plan).map_err(sentence)?;
        let Statistics { calibration, seen, .. } = statistics;
        let dtype = self.model.checkpoint.dtype();
        let tell = |report: &LayerReport| {
            let report = to_json(report).unwrap_or_default();
            // What the listener throws is its own affair.
            drop(on_layer.call1(&JsValue::NULL, &report.into()));
        };
        let output = &mut Archived(archive);
        to_json(&in_memory::compress(&self.model, calibration, seen, &plan, dtype, output, tell).map_err(sentence)?)
    }

    /// Perplexity on `text`, as JSON. `request` is an [`EvaluationRequest`]; `on_progress(done, of)`.
    ///
    /// # Errors
    /// What is wrong with request or text, or what the device said.
    pub async fn perplexity(
        &self,
        device: &Device,
        text: String,
        request: String,
        on_progress: Function,
    ) -> Result<String, String> {
        let request: EvaluationRequest = from_json(&request)?;
        let corpus = [Corpus::from_plain("text", &text).map_err(sentence)?];
        let listener = Listener::new(on_progress);
        to_json(&evaluate(&self.model, &corpus, request.into(), &device.compute, &listener).await.map_err(sentence)?)
    }

    /// Continues `prompt`; [`WriteResult`] as JSON. `request` is a [`WriteRequest`]; `on_piece(text)` is given each piece
    /// as it comes, and ends the text by returning `false`.
    ///
    /// # Errors
    /// What is wrong with request or prompt, or what the device said.
    pub async fn write(
        &self,
        device: &Device,
        prompt: String,
        request: String,
        on_piece: Function,
    ) -> Result<String, String> {
        let WriteRequest { max_new_tokens, temperature, seed } = from_json(&request)?;
        let options = SamplerOptions { temperature, seed, ..SamplerOptions::default() };
        let go_on = |piece: &str| {
            let answer = on_piece.call1(&JsValue::NULL, &piece.into());
            answer.is_ok_and(|answer| answer != JsValue::FALSE)
        };
        let written = write(&self.model, &prompt, max_new_tokens, options, &device.compute, go_on);
        let modegpt::Written { text, ids, .. } = written.await.map_err(sentence)?;
        to_json(&WriteResult { text, n_tokens: ids.len() })
    }
}

#[wasm_bindgen]
impl Statistics {
    /// Rows and columns `units` of the Gram matrix of a layer's hidden units, row after row.
    ///
    /// # Errors
    /// That there is no such layer or unit.
    #[wasm_bindgen(js_name = hiddenGram)]
    pub fn hidden_gram(&self, layer: usize, units: &[usize]) -> Result<Vec<f64>, String> {
        let gram = &self.seen.statistics.get(layer).ok_or_else(|| format!("layer {layer} was not observed"))?.mlp;
        if let Some(unit) = units.iter().find(|unit| **unit >= gram.dim()) {
            return Err(format!("layer {layer} has {} hidden units, there is no unit {unit}", gram.dim()));
        }
        Ok(units.iter().flat_map(|&row| units.iter().map(move |&col| gram.get(row, col))).collect())
    }

    /// [`StatisticsSummary`] as JSON.
    ///
    /// # Errors
    /// None that is known.
    pub fn summary(&self) -> Result<String, String> {
        to_json(&StatisticsSummary::of(&self.calibration, &self.seen))
    }
}

/// Carries progress to a function of the page.
struct Listener {
    function: Function,
    total: Cell<u64>,
}

impl Listener {
    fn new(function: Function) -> Self {
        Self { function, total: Cell::new(0) }
    }
}

impl Reporter for Listener {
    fn begin(&self, _stage: &str, total: u64) {
        self.total.set(total);
    }

    fn advance(&self, done: u64) {
        let (done, total) = (JsValue::from(done as f64), JsValue::from(self.total.get() as f64));
        // What the listener throws is its own affair.
        drop(self.function.call2(&JsValue::NULL, &done, &total));
    }

    fn end(&self) {}

    fn note(&self, _remark: &str) {}
}
