//! What an independent float64 prototype of the method measured, and this implementation under its protocol.

use std::path::PathBuf;

use modegpt::calibration::GramPath;
use modegpt::checkpoint::Existing;
use modegpt::compress::{Allocation, ErrorUnit, Mode, Plan, PlanOptions, Ridges, Rounding};
use modegpt::evaluation::{ScoringOptions, Window, score_windows};
use modegpt::model_runtime::Compute;
use modegpt::run::{
    AllocationChoice, CalibrationRun, CompressionOptions, PlanSource, StatisticsFolder, calibrate, compress,
};
use modegpt::text_tools::{BosPolicy, Corpus, TextJoin, Windows, token_hash};
use modegpt::{Calibration, Model};
use tempfile::TempDir;

use crate::{open_folder, read_text};

/// `n` of the slots of `seq_len` tokens that a text is cut into: number `i` is slot `⌊i · slots / n⌋`.
///
/// These are the prototype's windows: of all ways tried to spread them, this alone gives the perplexities of its dense models.
#[derive(Clone, Copy, Debug)]
struct Sample {
    file: &'static str,
    n: usize,
    seq_len: usize,
}

/// How a model was measured, and what came out.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Name of the model.
    pub model: &'static str,
    calibration: Sample,
    evaluation: Sample,
    /// Perplexity of the dense model.
    pub dense: f64,
    /// Perplexity over that of the dense model, by allocation and sparsity.
    ratios: &'static [(AllocationChoice, f64, f64)],
}

/// The largest share that the prototype lets a layer lose.
const CAP: f64 = 0.95;

const UNIFORM: AllocationChoice = AllocationChoice::Uniform;
const PAPER: AllocationChoice = AllocationChoice::Paper;
const TRAIN: &str = "text/tinystories/train.txt";
const TEST: &str = "text/tinystories/test.txt";

/// Of the paper's recipe, which the prototype calls V0.
pub const PROTOCOLS: [Protocol; 3] = [
    Protocol {
        model: "opt-tiny-stories",
        calibration: Sample { file: TRAIN, n: 256, seq_len: 256 },
        evaluation: Sample { file: TEST, n: 128, seq_len: 256 },
        dense: 14.275,
        ratios: &[
            (UNIFORM, 0.2, 1.046),
            (UNIFORM, 0.3, 1.120),
            (UNIFORM, 0.4, 1.236),
            (PAPER, 0.2, 1.081),
            (PAPER, 0.3, 1.244),
            (PAPER, 0.4, 1.454),
        ],
    },
    Protocol {
        model: "stories260k",
        calibration: Sample { file: TRAIN, n: 96, seq_len: 512 },
        evaluation: Sample { file: TEST, n: 16, seq_len: 512 },
        dense: 4.038,
        ratios: &[(UNIFORM, 0.3, 5.15), (UNIFORM, 0.4, 15.8), (PAPER, 0.3, 4.58), (PAPER, 0.4, 13.8)],
    },
    Protocol {
        model: "smollm2-135m",
        calibration: Sample { file: "text/wikitext-2-raw/wiki.valid.raw", n: 16, seq_len: 512 },
        evaluation: Sample { file: "text/wikitext-2-raw/wiki.test.raw", n: 6, seq_len: 512 },
        dense: 33.560,
        ratios: &[(UNIFORM, 0.2, 1.837), (UNIFORM, 0.3, 2.765), (UNIFORM, 0.4, 4.052), (PAPER, 0.3, 2.962)],
    },
];

/// A ratio of the prototype beside ours.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// How sparsity was spread.
    pub allocation: AllocationChoice,
    /// Share of the block weights that was removed.
    pub sparsity: f64,
    /// The prototype's perplexity over that of its dense model.
    pub expected: f64,
    /// Ours.
    pub found: f64,
}

/// A calibrated model, compressed in one way after the other.
pub struct Run {
    protocol: Protocol,
    model: Model,
    calibration: Calibration,
    folder: TempDir,
    /// Perplexity of the dense model.
    pub dense: f64,
}

impl Protocol {
    /// Calibrates, and scores the dense model.
    ///
    /// # Panics
    /// If a text is not there, or a pass fails.
    pub fn begin(self, model: Model) -> Run {
        let calibration = self.calibration.draw(&model);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let compute = Compute::host();
        let run = CalibrationRun::new(&model, &calibration, &compute, GramPath::Host);
        let target = folder.path().join("statistics");
        pollster::block_on(calibrate(&run, &target, Existing::Refuse)).expect("calibrates");
        let dense = self.perplexity(&model);
        Run { protocol: self, model, calibration, folder, dense }
    }

    fn perplexity(&self, model: &Model) -> f64 {
        let windows = self.evaluation.draw(model).windows;
        let windows: Vec<Window<'_>> = windows.iter().map(|ids| Window { ids, first_target: 1 }).collect();
        let options = ScoringOptions { batch: 4, stream_bytes: 256 << 20 };
        let compute = Compute::host();
        let score = score_windows(&model.checkpoint, &windows, options, &compute, |_| {});
        pollster::block_on(score).expect("finite").perplexity()
    }
}

impl Run {
    /// Every ratio of the protocol again, with these multiples for widths.
    ///
    /// # Panics
    /// If compression fails.
    pub fn compare(&self, rounding: Rounding) -> Vec<Compared> {
        let compared = self.protocol.ratios.iter().map(|&(allocation, sparsity, expected)| {
            let small = open_folder(self.compress(self.plan(allocation, sparsity, rounding)));
            Compared { allocation, sparsity, expected, found: self.protocol.perplexity(&small) / self.dense }
        });
        compared.collect()
    }

    fn statistics(&self) -> StatisticsFolder {
        StatisticsFolder::new(self.folder.path().join("statistics"))
    }

    /// The paper's methods, with the prototype's largest share of a layer.
    fn plan(&self, allocation: AllocationChoice, sparsity: f64, rounding: Rounding) -> Plan {
        let (config, fingerprint) = (self.model.config(), self.model.fingerprint());
        let (influences, _) = self.statistics().influences(config.layers.len(), fingerprint).expect("whole statistics");
        let allocation = match (allocation, Allocation::by_block_influence(config, &influences)) {
            (AllocationChoice::Uniform, _) => Allocation::Uniform {},
            (_, Ok(Allocation::BlockInfluence { epsilon, .. })) => Allocation::BlockInfluence { epsilon, cap: CAP },
            (_, other) => panic!("{other:?}"),
        };
        let (mode, methods, unit) = (Mode::Paper, Mode::Paper.methods(), ErrorUnit::ResidualEnergy);
        let options = PlanOptions { sparsity, mode, methods, unit, allocation, rounding, ridges: Ridges::default() };
        Plan::new(config, fingerprint, &influences, None, &options).expect("a plan")
    }

    fn compress(&self, plan: Plan) -> PathBuf {
        let compute = Compute::host();
        let run = CalibrationRun::new(&self.model, &self.calibration, &compute, GramPath::Host);
        let options = CompressionOptions {
            statistics: Some(self.statistics()),
            existing: Existing::Replace,
            ..CompressionOptions::new(PlanSource::Given(Box::new(plan)))
        };
        let result = pollster::block_on(compress(&run, &options, &self.folder.path().join("small")));
        result.unwrap_or_else(|error| panic!("{error}")).folder
    }
}

impl Sample {
    fn draw(&self, model: &Model) -> Calibration {
        let text = read_text(self.file);
        let tokens = self.corpus(&text).encode(&model.tokenizer, BosPolicy::EachDocument).expect("encodes");
        let slots: Vec<&[u32]> = tokens.chunks_exact(self.seq_len).collect();
        let ids: Vec<u32> = (0..self.n).flat_map(|i| slots[i * slots.len() / self.n]).copied().collect();
        let token_hash = token_hash(&ids);
        Calibration { windows: Windows { ids, n: self.n, seq_len: self.seq_len }, token_hash }
    }

    /// The first 3000 stories, all of the test's, or lines of WikiText with two newlines more between them: as papers join
    /// them, but for the lines of one space, which stay.
    fn corpus(&self, text: &str) -> Corpus {
        if self.file == TRAIN {
            let end = text.match_indices("<|endoftext|>").nth(2999).map_or(text.len(), |(place, _)| place);
            return Corpus::from_plain(self.file, &text[..end]).expect("stories");
        }
        if self.file == TEST {
            return Corpus::from_plain(self.file, text).expect("stories");
        }
        let text = text.split_inclusive('\n').collect::<Vec<_>>().join("\n\n");
        Corpus::from_plain_joined(self.file, &text, TextJoin::AsIs).expect("text")
    }
}
