//! Configuration and weights of a model, of which perhaps only a part has arrived.

use js_sys::Function;
use modegpt::architecture::{self, Matrix, WeightProvider};
use modegpt::{Spectrum, each_weight_spectrum};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::store::{Store, Stored};
use super::{sentence, to_json};
use crate::protocol::{Span, Summary};

/// What a model is, and its weights layer by layer. What has not arrived is an error where it is asked for.
#[wasm_bindgen]
pub struct Checkpoint {
    checkpoint: modegpt::checkpoint::Checkpoint,
}

/// A matrix, row after row.
#[wasm_bindgen]
pub struct Weight {
    matrix: Matrix,
}

#[wasm_bindgen]
impl Weight {
    /// Number of rows.
    #[wasm_bindgen(getter)]
    pub fn rows(&self) -> usize {
        self.matrix.rows
    }

    /// Number of columns.
    #[wasm_bindgen(getter)]
    pub fn cols(&self) -> usize {
        self.matrix.cols
    }

    /// The elements, row after row.
    pub fn values(&self) -> Vec<f32> {
        self.matrix.data.clone()
    }
}

#[wasm_bindgen]
impl Checkpoint {
    /// Opens the weights in `store`, by their headers alone; `place` is what to call it. Shards may be missing.
    ///
    /// # Errors
    /// Which file is wrong, and what with it.
    pub fn open(store: Store, place: String) -> Result<Self, String> {
        let source = Stored::source(store, place);
        Ok(Self::of(modegpt::checkpoint::Checkpoint::open_incomplete(source).map_err(sentence)?))
    }

    /// [`Summary`] as JSON.
    ///
    /// # Errors
    /// None that is known.
    pub fn summary(&self) -> Result<String, String> {
        to_json(&Summary::of(&self.checkpoint))
    }

    /// Where the tensors of a layer lie, or those of no layer if `layer` is left out: a list of [`Span`] as JSON.
    ///
    /// # Errors
    /// That there is no such layer.
    pub fn spans(&self, layer: Option<usize>) -> Result<String, String> {
        if let Some(layer) = layer {
            self.check_layer(layer)?;
        }
        to_json(&Span::of(&self.checkpoint, layer))
    }

    /// A matrix of a layer, `[d_in, d_out]`, by the name that [`Self::weight_spectra`] gives it.
    ///
    /// # Errors
    /// That there is no such layer or matrix, or that it is held as a product.
    pub fn weight(&self, layer: usize, matrix: &str) -> Result<Weight, String> {
        self.check_layer(layer)?;
        let weights = self.checkpoint.layer(layer).map_err(sentence)?;
        let found = weights.linears().find(|(name, _)| *name == matrix).map(|(_, linear)| &linear.weight);
        match found {
            Some(architecture::Weight::Dense(matrix)) => Ok(Weight { matrix: matrix.clone() }),
            Some(architecture::Weight::Factorised(_)) => Err(format!("the matrix `{matrix}` is held as two factors")),
            None => Err(format!("there is no matrix `{matrix}`")),
        }
    }

    /// Singular values of every matrix of a layer, and of the products of values and outputs: `on_spectrum` is given each
    /// as JSON when it is known.
    ///
    /// # Errors
    /// That there is no such layer, that a file of it is missing, or that a weight is not finite.
    #[wasm_bindgen(js_name = weightSpectra)]
    pub fn weight_spectra(&self, layer: usize, on_spectrum: &Function) -> Result<(), String> {
        self.check_layer(layer)?;
        let weights = self.checkpoint.layer(layer).map_err(sentence)?;
        let tell = |spectrum: Spectrum| {
            let json = to_json(&spectrum).unwrap_or_default();
            // What the listener throws is its own affair.
            drop(on_spectrum.call1(&JsValue::NULL, &json.into()));
        };
        each_weight_spectrum(self.checkpoint.config(), &weights, tell).map_err(sentence)
    }
}

impl Checkpoint {
    pub(crate) fn of(checkpoint: modegpt::checkpoint::Checkpoint) -> Self {
        Self { checkpoint }
    }

    fn check_layer(&self, layer: usize) -> Result<(), String> {
        let n_layers = self.checkpoint.config().layers.len();
        if layer < n_layers {
            Ok(())
        } else {
            Err(format!("the model has {n_layers} layers, there is no layer {layer}"))
        }
    }
}
