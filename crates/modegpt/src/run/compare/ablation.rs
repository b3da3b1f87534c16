//! The decisions in which mode best differs from the paper, one by one.

use modegpt_architecture::{ModelConfig, NormPlacement};
use modegpt_compress::{ErrorUnit, Mode, PrefixRefit, Target};

use crate::PlanRequest;

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Mlp,
    QueryKey,
    ValueOutput,
    Allocation,
    Gradients,
    Prefix,
}

impl Decision {
    const ALL: [Self; 6] =
        [Self::Mlp, Self::QueryKey, Self::ValueOutput, Self::Allocation, Self::Gradients, Self::Prefix];

    fn label(self) -> &'static str {
        match self {
            Self::Mlp => "elimination (MLP)",
            Self::QueryKey => "refit (query–key)",
            Self::ValueOutput => "attention (value–output)",
            Self::Allocation => "error curves (allocation)",
            Self::Gradients => "gradients",
            Self::Prefix => "compressed prefix",
        }
    }

    /// Decides in `request` as in `other`.
    fn take(self, request: &mut PlanRequest, other: &PlanRequest) {
        let (methods, theirs) = (&mut request.methods, other.methods);
        match self {
            Self::Mlp => (methods.mlp, methods.mlp_bias) = (theirs.mlp, theirs.mlp_bias),
            Self::QueryKey => methods.query_key = theirs.query_key,
            Self::ValueOutput => methods.value_output = theirs.value_output,
            Self::Allocation => request.allocation = other.allocation,
            Self::Gradients => request.unit = other.unit,
            Self::Prefix => methods.prefix = theirs.prefix,
        }
    }
}

/// What an ablation computes: from the paper's recipe to everything, one decision after another; and everything, and
/// everything but one decision. The first and the last step of the one are the paper and the first step of the other.
pub(super) struct Steps {
    pub(super) added: Vec<(String, PlanRequest)>,
    pub(super) left_out: Vec<(String, PlanRequest)>,
}

impl Steps {
    /// The steps at a sparsity, without decisions that the model does not allow.
    pub(super) fn new(sparsity: f64, config: &ModelConfig) -> Self {
        let target = Target::Sparsity(sparsity);
        let is_possible =
            |decision: &Decision| *decision != Decision::Prefix || config.norm_placement == NormPlacement::Pre;
        let decisions: Vec<Decision> = Decision::ALL.into_iter().filter(is_possible).collect();
        let paper = PlanRequest::new(target, Mode::Paper);
        let mut everything = PlanRequest { unit: ErrorUnit::Nats, ..PlanRequest::new(target, Mode::Best) };
        if decisions.contains(&Decision::Prefix) {
            everything.methods.prefix = PrefixRefit::All;
        }
        let mut added = vec![("paper".to_owned(), paper)];
        let mut so_far = PlanRequest { mode: Mode::Best, ..paper };
        let mut left_out = vec![("everything".to_owned(), everything)];
        for decision in decisions {
            decision.take(&mut so_far, &everything);
            added.push((format!("+ {}", decision.label()), so_far));
            let mut without = everything;
            decision.take(&mut without, &paper);
            left_out.push((format!("− {}", decision.label()), without));
        }
        Self { added, left_out }
    }
}
