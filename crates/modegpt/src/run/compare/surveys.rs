//! What layers lose at every width, found out once for all sizes of a method.

use std::fs;

use modegpt_compress::ErrorUnit;

use super::folder::CompareFolder;
use super::grid::{Asked, scratch};
use super::{CompareError, CompareRun, SeededDraw};
use crate::run::survey::survey_key;
use crate::run::{GradientsFolder, Known, PlanRequest, StatisticsFolder, SurveyFolder};
use crate::{AllocationChoice, Model};

impl CompareRun<'_> {
    /// Where the surveys are that a cell needs, and how many seconds they took, whichever cell they were made for. A run that
    /// was stopped within a survey counts what was left of it.
    pub(super) fn survey(
        &self,
        asked: &Asked,
        statistics: &StatisticsFolder,
        drawn: &SeededDraw,
        folder: &CompareFolder,
    ) -> Result<(SurveyFolder, f64), CompareError> {
        let surveys = SurveyFolder::new(scratch(drawn, folder).join("surveys"));
        let mut secs = 0.0;
        if asked.request.allocation == AllocationChoice::ErrorCurves {
            for request in asked.request.tried(asked.held_out(self).is_some()) {
                secs += self.survey_once(&request, statistics, &surveys)?;
            }
        }
        Ok((surveys, secs))
    }

    fn survey_once(
        &self,
        request: &PlanRequest,
        statistics: &StatisticsFolder,
        surveys: &SurveyFolder,
    ) -> Result<f64, CompareError> {
        let model: &Model = self.model;
        let note = surveys.file(&survey_key(request, model.config()), "secs");
        if let Some(secs) = fs::read(&note).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(secs);
        }
        let gradients = (request.unit == ErrorUnit::Nats).then(|| GradientsFolder::new(statistics.path()));
        let begin = (self.clock)();
        Known { model, statistics, gradients: gradients.as_ref() }.survey(request, Some(surveys), self.reporter)?;
        let secs = (self.clock)() - begin;
        fs::write(&note, secs.to_string()).map_err(|reason| CompareError::Io { path: note, reason })?;
        Ok(secs)
    }
}
