//! What every layer would lose at every width.

use std::io;
use std::path::{Path, PathBuf};

use modegpt_architecture::{ModelConfig, WeightProvider};
use modegpt_compress::{Curves, Layer, Methods, Orders, PrefixRefit};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{GradientsFolder, PlanRequest, RunError, StatisticsFolder};
use crate::plan_request::Survey;
use crate::{Model, Reporter};

/// A folder of surveys that were made from the same statistics. What layers lose at every width does not depend on how small
/// the model shall become: compressions to several sizes share it.
#[derive(Clone, Debug)]
pub struct SurveyFolder {
    path: PathBuf,
}

/// The survey of a layer, as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    /// What it was asked for.
    key: String,
    survey: T,
}

impl SurveyFolder {
    /// The folder at `path`, which is made when something is kept.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// A file for what is known under `key`, named after the unit of its errors.
    pub(super) fn file(&self, key: &str, what: &str) -> PathBuf {
        let unit = key.split_whitespace().next().unwrap_or_default();
        let hash = format!("{:x}", Sha256::digest(key));
        self.path.join(format!("{unit}-{what}-{}.json", &hash[..16]))
    }

    /// The survey of a layer; `None` if it is not there whole.
    fn read(&self, key: &str, layer: usize) -> Option<Survey> {
        let bytes = std::fs::read(self.file(key, &format!("{layer:05}"))).ok()?;
        let kept: Kept<Survey> = serde_json::from_slice(&bytes).ok()?;
        (kept.key == key).then_some(kept.survey)
    }

    fn keep(&self, key: &str, layer: usize, survey: &Survey) -> Result<(), RunError> {
        let path = self.file(key, &format!("{layer:05}"));
        let kept = Kept { key: key.to_owned(), survey };
        let bytes = serde_json::to_vec(&kept).expect("surveys have only string keys");
        write_whole(&path, &bytes).map_err(|reason| RunError::Scratch { path, reason })
    }
}

/// Writes a file that is read whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

/// A model and what has been learnt of it.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The model.
    pub model: &'a Model,
    /// What calibration saw.
    pub statistics: &'a StatisticsFolder,
    /// What a backward pass gave.
    pub gradients: Option<&'a GradientsFolder>,
}

impl Known<'_> {
    /// What all layers offer under the methods of `request`, one layer in memory at a time, and the orders in which things
    /// go in each, if there are any.
    ///
    /// Surveys that are in `folder` already are read from there, and new ones kept in it.
    ///
    /// # Errors
    /// [`RunError`] with the layer.
    pub fn survey(
        &self,
        request: &PlanRequest,
        folder: Option<&SurveyFolder>,
        reporter: &dyn Reporter,
    ) -> Result<(Curves, Vec<Orders>), RunError> {
        let config = self.model.config();
        let (key, n_layers) = (survey_key(request, config), config.layers.len());
        let mut surveys: Vec<Option<Survey>> =
            (0..n_layers).map(|index| folder.and_then(|folder| folder.read(&key, index))).collect();
        if surveys.iter().any(Option::is_none) {
            reporter.begin("survey", n_layers as u64);
            for (index, place) in surveys.iter_mut().enumerate().filter(|(_, survey)| survey.is_none()) {
                let survey = self.with_layer(index, |layer| Ok(request.survey(layer)?))?;
                if let Some(folder) = folder {
                    folder.keep(&key, index, &survey)?;
                }
                *place = Some(survey);
                reporter.advance(index as u64 + 1);
            }
            reporter.end();
        }
        Ok(Survey::join(surveys.into_iter().flatten().collect()))
    }

    /// Reads everything about a layer, lets `work` use it, and drops it.
    pub(super) fn with_layer<T>(
        &self,
        index: usize,
        work: impl FnOnce(&Layer<'_>) -> Result<T, RunError>,
    ) -> Result<T, RunError> {
        let config = self.model.config();
        let fingerprint = self.model.fingerprint();
        let (statistics, _) = self.statistics.read(index, fingerprint)?;
        let gradients = self.gradients.map(|gradients| gradients.read(index, fingerprint)).transpose()?;
        let weights =
            self.model.checkpoint.layer(index)?.into_dense().map_err(modegpt_architecture::WeightError::from)?;
        work(&Layer {
            config,
            index,
            weights: &weights,
            shape: &config.layers[index],
            statistics: &statistics,
            gradients: gradients.as_ref().map(|(gradients, _)| gradients),
        })
    }
}

/// All that a survey depends on beside what is known of the model, the unit of its errors first.
pub(super) fn survey_key(request: &PlanRequest, config: &ModelConfig) -> String {
    let PlanRequest { methods, unit, ridges, .. } = request;
    let methods = Methods { prefix: PrefixRefit::None, ..*methods };
    format!("{} {methods:?} {ridges:?} {:?}", unit.name(), request.rounding(config))
}
