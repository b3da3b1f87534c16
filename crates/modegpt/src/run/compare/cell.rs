//! One model: made by compression or as it was, measured, and kept as a note.

use std::sync::Arc;

use modegpt_architecture::{LayerShape, MapName, ModelConfig};
use modegpt_checkpoint::{Existing, FolderSource, Journal};
use modegpt_compress::{ErrorUnit, LayerPlan, Widths};
use modegpt_evaluation::SamplerOptions;
use modegpt_report::{
    Cell, Curve, Draw, LayerCurves, LayerFacts, Measured, MethodCurves, PerModule, Prediction, TaskAccuracy, TextFacts,
    TextScore,
};
use serde::{Deserialize, Serialize};

use super::dense_streams::DenseStreams;
use super::folder::{CompareFolder, remove};
use super::grid::Asked;
use super::{CompareError, CompareRun, SeededDraw};
use crate::evaluate::evaluate_against_kept;
use crate::run::{CompressionOptions, CompressionResult, PlanSource, StatisticsFolder, answer_tasks, compress};
use crate::{Model, evaluate, evaluation_token_hash, write};

/// What a note of a cell holds.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) cell: Cell,
    pub(super) curves: Option<MethodCurves>,
    pub(super) draw: Draw,
}

/// What the note of the dense model holds.
#[derive(Serialize, Deserialize)]
pub(super) struct Dense {
    pub(super) measured: Measured,
    pub(super) texts: Vec<TextFacts>,
}

impl Dense {
    /// The dense model as an earlier run measured it, or measured now.
    pub(super) async fn known_or_measured(
        run: &CompareRun<'_>,
        folder: &CompareFolder,
        computed: &Journal,
    ) -> Result<Self, CompareError> {
        if let Some(dense) = folder.read("dense", computed)? {
            return Ok(dense);
        }
        run.reporter.note("the dense model");
        let mut texts = Vec::with_capacity(run.texts.len());
        let mut scores = Vec::with_capacity(run.texts.len());
        for text in run.texts {
            let found = evaluate(run.model, &text.corpora, run.evaluation, run.compute, run.reporter).await?;
            scores.push(TextScore { perplexity: found.perplexity, kl_divergence: None, top1_agreement: None });
            texts.push(TextFacts {
                name: text.name.clone(),
                token_hash: found.token_hash,
                n_windows: found.n_windows,
                seq_len: found.seq_len,
                stride: found.stride,
                n_tokens: found.n_tokens,
            });
        }
        let dense = Self { measured: run.measure(run.model, scores).await?, texts };
        folder.keep("dense", computed, &dense)?;
        Ok(dense)
    }
}

impl CompareRun<'_> {
    /// What all cells and the dense model have in common.
    pub(super) fn computed(&self) -> Result<Journal, CompareError> {
        let options = self.evaluation;
        let mut computed: Journal = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", self.model.fingerprint().to_owned()),
            (
                "windows",
                format!("{} tokens, {} apart, at most {:?}", options.seq_len, options.stride, options.max_windows),
            ),
            ("batch", self.batch_tokens.to_string()),
            ("device", if self.compute.is_host { "cpu".to_owned() } else { self.device.to_owned() }),
            ("sample", format!("{} tokens after `{}`", self.sample_tokens, self.prompt)),
            ("reading", self.reading.map_or("not measured", |(_, how)| how).to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for text in self.texts {
            let hash = evaluation_token_hash(self.model, &text.corpora, options)?;
            computed.insert(format!("text {}", text.name), hash);
        }
        for task in self.tasks {
            let protocol = task.protocol();
            let what = format!("{} questions, file {}, tokens {}", task.n(), protocol.file_hash, protocol.token_hash);
            computed.insert(format!("task {}", task.name()), what);
        }
        Ok(computed)
    }

    /// Compresses as `asked`, measures, and keeps what was found.
    pub(super) async fn compute_cell(
        &self,
        asked: &Asked,
        drawn: (&SeededDraw, &Draw),
        statistics: &StatisticsFolder,
        folder: &CompareFolder,
    ) -> Result<Found, CompareError> {
        let target = if self.keep { folder.model(&asked.note) } else { folder.work().join("model") };
        let (surveys, survey_secs) = self.survey(asked, statistics, drawn.0, folder)?;
        let options = CompressionOptions {
            statistics: Some(statistics.clone()),
            held_out: asked.held_out(self).cloned(),
            surveys: Some(surveys),
            existing: Existing::Replace,
            ..CompressionOptions::new(PlanSource::Make(asked.request))
        };
        let begin = (self.clock)();
        let result = compress(&self.calibration_run(drawn.0, &[asked]), &options, &target).await?;
        let secs = survey_secs + (self.clock)() - begin;
        let small = Model::open(Arc::new(FolderSource::new(&target)))?;
        let (scores, incurred) = self.scores(&small, folder).await?;
        let measured = self.measure(&small, scores).await?;
        if !self.keep {
            drop(small);
            remove(&target)?;
        }
        let totals = result.report.totals;
        let cell = Cell {
            method: asked.method.clone(),
            sparsity: asked.sparsity,
            seed: drawn.0.seed,
            removed: totals.sparsity,
            measured,
            secs,
            predicted: prediction(&result),
            fallbacks: result.report.fallbacks,
            layers: layer_facts(self.model.config(), &result, &incurred),
        };
        Ok(Found { cell, curves: method_curves(asked, &result), draw: drawn.1.clone() })
    }

    /// Scores on all texts, and the errors of the residual stream on the first.
    async fn scores(&self, small: &Model, folder: &CompareFolder) -> Result<(Vec<TextScore>, Vec<f64>), CompareError> {
        let mut scores = Vec::with_capacity(self.texts.len());
        let mut incurred = Vec::new();
        for (index, text) in self.texts.iter().enumerate() {
            let (options, compute, reporter) = (self.evaluation, self.compute, self.reporter);
            scores.push(if self.against_dense {
                let kept = DenseStreams::new(folder.work().join("dense"), index);
                let (found, comparison) =
                    evaluate_against_kept(small, self.model, &text.corpora, options, Some(&kept), compute, reporter)
                        .await?;
                if index == 0 {
                    incurred = comparison.layer_errors;
                }
                TextScore {
                    perplexity: found.perplexity,
                    kl_divergence: Some(comparison.kl_divergence),
                    top1_agreement: Some(comparison.top1_agreement),
                }
            } else {
                let found = evaluate(small, &text.corpora, options, compute, reporter).await?;
                TextScore { perplexity: found.perplexity, kl_divergence: None, top1_agreement: None }
            });
        }
        Ok((scores, incurred))
    }

    /// Everything about a model but its scores on texts.
    async fn measure(&self, model: &Model, texts: Vec<TextScore>) -> Result<Measured, CompareError> {
        let answered = answer_tasks(model, self.tasks, self.batch_tokens, None, self.compute, self.reporter).await?;
        let tasks = answered.scores.iter().map(|score| TaskAccuracy {
            acc: score.acc,
            acc_stderr: score.acc_stderr,
            acc_norm: score.acc_norm,
            acc_norm_stderr: score.acc_norm_stderr,
        });
        let greedy = SamplerOptions::default();
        let written = write(model, self.prompt, self.sample_tokens, greedy, self.compute, |_| true).await?;
        let speed = self.reading.map(|(speed, _)| speed(model)).transpose()?;
        Ok(Measured {
            texts,
            tasks: tasks.collect(),
            tokens_per_sec: speed.map(|[_, many]| many),
            tokens_per_sec_alone: speed.map(|[alone, _]| alone),
            params: model.params(),
            bytes: model.checkpoint.bytes(),
            sample: written.text,
        })
    }
}

fn prediction(result: &CompressionResult) -> Option<Prediction> {
    let error = result.plan.predicted_error().filter(|error| error.is_finite())?;
    Some(Prediction { error, unit: unit_name(result.plan.unit) })
}

fn unit_name(unit: ErrorUnit) -> String {
    match unit {
        ErrorUnit::Nats => Prediction::NATS,
        ErrorUnit::ResidualEnergy => "share of the residual stream’s energy",
        ErrorUnit::MapEnergy => "share of the energy of each map",
    }
    .to_owned()
}

fn layer_facts(before: &ModelConfig, result: &CompressionResult, incurred: &[f64]) -> Vec<LayerFacts> {
    let reports = result.report.layers.iter().enumerate();
    reports
        .map(|(index, report)| LayerFacts {
            before: widths(report.before),
            after: widths(report.after),
            removed: removed(before, &before.layers[index], &result.config.layers[index]),
            predicted: PerModule {
                mlp: report.mlp.relative_error,
                query_key: report.query_key.relative_error,
                value_output: report.value_output.relative_error,
            },
            incurred: incurred.get(index).copied().filter(|error| error.is_finite()),
        })
        .collect()
}

fn widths(widths: Widths) -> PerModule<usize> {
    PerModule { mlp: widths.d_ff, query_key: widths.d_qk, value_output: widths.d_v }
}

/// The share of each module's weights that is gone, whether widths or ranks shrank.
fn removed(config: &ModelConfig, before: &LayerShape, after: &LayerShape) -> PerModule<f64> {
    let share = |names: &[MapName]| {
        let params = |shape: &LayerShape| -> usize {
            config.map_shapes(shape).filter(|map| names.contains(&map.name)).map(|map| map.params()).sum()
        };
        1.0 - params(after) as f64 / params(before) as f64
    };
    PerModule {
        mlp: share(&[MapName::Gate, MapName::Up, MapName::Down]),
        query_key: share(&[MapName::Query, MapName::Key]),
        value_output: share(&[MapName::Value, MapName::Output]),
    }
}

fn method_curves(asked: &Asked, result: &CompressionResult) -> Option<MethodCurves> {
    let of_layer = |layer: &LayerPlan| -> Option<LayerCurves> {
        let curves = layer.curves.as_ref()?;
        let curve =
            |curve: &modegpt_compress::ErrorCurve| Curve { widths: curve.widths.clone(), errors: curve.errors.clone() };
        Some(PerModule { mlp: curve(&curves.d_ff), query_key: curve(&curves.d_qk), value_output: curve(&curves.d_v) })
    };
    let layers: Option<Vec<LayerCurves>> = result.plan.layers.iter().map(of_layer).collect();
    Some(MethodCurves { method: asked.method.clone(), unit: unit_name(result.plan.unit), layers: layers? })
}
