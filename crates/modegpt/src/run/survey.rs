//! What every layer would lose at every width.

use modegpt_architecture::WeightProvider;
use modegpt_checkpoint::OutputFolder;
use modegpt_compress::{Layer, LayerSurvey, survey_layer};

use super::notes::{read_note, write_note};
use super::{GradientsFolder, PlanRequest, RunError, StatisticsFolder};
use crate::{Model, Reporter};

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
    /// What all layers offer under the methods of `request`, one layer in memory at a time.
    ///
    /// Surveys that are in `cache` already are read from there, and new ones written to it.
    ///
    /// # Errors
    /// [`RunError`] with the layer.
    pub fn survey(
        &self,
        request: &PlanRequest,
        cache: Option<&OutputFolder>,
        reporter: &dyn Reporter,
    ) -> Result<Vec<LayerSurvey>, RunError> {
        let config = self.model.config();
        reporter.begin("survey", config.layers.len() as u64);
        let mut surveys = Vec::with_capacity(config.layers.len());
        for index in 0..config.layers.len() {
            let note = format!("surveys/{}-{index:05}.json", request.unit.name());
            let survey = if let Some(survey) = cache.and_then(|folder| read_note(folder, &note)) {
                survey
            } else {
                let grid = request.width_grid(config, index);
                let survey =
                    self.with_layer(index, |layer| Ok(survey_layer(layer, &grid, request.methods, request.ridges)?))?;
                if let Some(folder) = cache {
                    write_note(folder, &note, &survey)?;
                }
                survey
            };
            surveys.push(survey);
            reporter.advance(index as u64 + 1);
        }
        reporter.end();
        Ok(surveys)
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
