//! What is asked of a plan in the words of the command line, for whoever resumes a run that was asked something else.

use modegpt_compress::{MapMetric, Methods, Plan, Ridges, Target};
use serde::Serialize;

use super::PlanSource;
use crate::{AllocationChoice, PlanRequest};

/// Options and their values. Sources that give different plans of one model differ here.
pub(super) fn words(source: &PlanSource) -> Vec<(&'static str, String)> {
    match source {
        PlanSource::Make(request) => request_words(request),
        PlanSource::Given(plan) => vec![("--plan", format!("a file with hash {}", hash(plan)))],
    }
}

fn hash(plan: &Plan) -> String {
    modegpt_text::token_hash(&plan.to_json().bytes().map(u32::from).collect::<Vec<_>>())
}

fn request_words(request: &PlanRequest) -> Vec<(&'static str, String)> {
    let &PlanRequest { target, mode, methods, unit, allocation, rounding, ridges } = request;
    let usual = PlanRequest::new(target, mode);
    let mut words = vec![target_words(target), ("--mode", name(mode))];
    words.extend(method_words(methods, usual.methods));
    if let Some(MapMetric::Asvd { alpha }) = methods.maps {
        words.push(("--alpha", alpha.to_string()));
    }
    // Where it is not asked for, the samples decide.
    words.push(("--prefix", methods.prefix.to_string()));
    words.push(("errors", format!("in {unit}")));
    if allocation_name(allocation) != allocation_name(usual.allocation) {
        words.push(("--allocation", allocation_name(allocation).to_owned()));
    }
    if let AllocationChoice::Epsilon(epsilon) = allocation {
        words.push(("--epsilon", epsilon.to_string()));
    }
    if let Some(rounding) = rounding {
        words.extend([
            ("--round-ff", rounding.ff.to_string()),
            ("--round-head", rounding.head.to_string()),
            ("--round-rank", rounding.rank.to_string()),
        ]);
    }
    words.extend(ridge_words(ridges));
    words
}

fn target_words(target: Target) -> (&'static str, String) {
    match target {
        Target::Sparsity(sparsity) => ("--sparsity", sparsity.to_string()),
        Target::Params(params) => ("--target-params", params.to_string()),
        Target::Bytes(bytes) => ("--target-bytes", bytes.to_string()),
    }
}

/// The methods that are not those of the mode.
fn method_words(asked: Methods, usual: Methods) -> impl Iterator<Item = (&'static str, String)> {
    let words = |methods: Methods| {
        [
            ("--mlp", name(methods.mlp)),
            ("--mlp-bias", methods.mlp_bias.to_string()),
            ("--query-key", name(methods.query_key)),
            ("--value-output", name(methods.value_output)),
        ]
    };
    words(asked).into_iter().zip(words(usual)).filter(|(asked, usual)| asked != usual).map(|(asked, _)| asked)
}

fn ridge_words(ridges: Ridges) -> [(&'static str, String); 5] {
    let Ridges { leverage, elimination, refit, gains, prefix } = ridges;
    [
        ("--ridge", leverage),
        ("ridge of the elimination", elimination),
        ("--refit-ridge", refit),
        ("ridge of the gains", gains),
        ("--prefix-ridge", prefix),
    ]
    .map(|(name, ridge)| (name, ridge.to_string()))
}

fn allocation_name(allocation: AllocationChoice) -> &'static str {
    match allocation {
        AllocationChoice::Paper | AllocationChoice::Epsilon(_) => "block-influence",
        AllocationChoice::Uniform => "uniform",
        AllocationChoice::ErrorCurves => "error-curves",
    }
}

/// As files name it, and the command line too.
pub(super) fn name(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => unreachable!("only variants without fields have names, found {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use modegpt_compress::{ErrorUnit, MlpMethod, Mode, PrefixRefit, QueryKeyMethod, Rounding, ValueOutputMethod};

    use super::*;

    const TARGET: Target = Target::Sparsity(0.3);

    fn said(request: PlanRequest) -> String {
        let words = request_words(&request).into_iter().map(|(name, value)| format!("{name} {value}"));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_are_said_as_on_the_command_line() {
        let best = PlanRequest::new(TARGET, Mode::Best);
        let ridges = "--ridge 0.001 ridge of the elimination 0.0001 --refit-ridge 0.00000001 ridge of the gains 0.000001 \
                      --prefix-ridge 8";
        let plain = "--prefix none errors in shares of the residual energy";
        assert_eq!(said(best), format!("--sparsity 0.3 --mode best {plain} {ridges}"));
        let methods = Methods { mlp: MlpMethod::Leverage, query_key: QueryKeyMethod::Cr, ..best.methods };
        let rounding = Some(Rounding { ff: 64, head: 8, rank: 8 });
        let asked = PlanRequest { target: Target::Params(1000), methods, rounding, ..best };
        let expected = "--target-params 1000 --mode best --mlp leverage --query-key cr";
        assert_eq!(said(asked), format!("{expected} {plain} --round-ff 64 --round-head 8 --round-rank 8 {ridges}"));
        let paper = PlanRequest::new(Target::Bytes(7), Mode::Paper);
        let sharp = PlanRequest { allocation: AllocationChoice::Epsilon(0.5), ..paper };
        assert_eq!(said(sharp), format!("--target-bytes 7 --mode paper {plain} --epsilon 0.5 {ridges}"));
        let uniform = PlanRequest { allocation: AllocationChoice::Uniform, ..paper };
        assert_eq!(said(uniform), format!("--target-bytes 7 --mode paper {plain} --allocation uniform {ridges}"));
    }

    #[test]
    fn whatever_differs_is_said() {
        let best = PlanRequest::new(TARGET, Mode::Best);
        let (methods, ridges) = (best.methods, best.ridges);
        let with_methods = |methods| PlanRequest { methods, ..best };
        let with_ridges = |ridges| PlanRequest { ridges, ..best };
        let requests = [
            best,
            PlanRequest { target: Target::Sparsity(0.1 + 0.2), ..best },
            PlanRequest { target: Target::Params(3), ..best },
            PlanRequest { target: Target::Bytes(3), ..best },
            PlanRequest { mode: Mode::Paper, ..best },
            with_methods(Methods { mlp: MlpMethod::Leverage, ..methods }),
            with_methods(Methods { mlp_bias: false, ..methods }),
            with_methods(Methods { query_key: QueryKeyMethod::Cr, ..methods }),
            with_methods(Methods { value_output: ValueOutputMethod::Values, ..methods }),
            with_methods(Methods { prefix: PrefixRefit::All, ..methods }),
            with_methods(Methods { prefix: PrefixRefit::Output, ..methods }),
            PlanRequest { unit: ErrorUnit::Nats, ..best },
            PlanRequest { allocation: AllocationChoice::Paper, ..best },
            PlanRequest { allocation: AllocationChoice::Epsilon(0.1), ..best },
            PlanRequest { allocation: AllocationChoice::Uniform, ..best },
            PlanRequest { rounding: Some(Rounding { ff: 8, head: 2, rank: 8 }), ..best },
            PlanRequest { rounding: Some(Rounding { ff: 8, head: 4, rank: 8 }), ..best },
            PlanRequest { rounding: Some(Rounding { ff: 8, head: 4, rank: 4 }), ..best },
            PlanRequest::new(TARGET, Mode::Svd),
            PlanRequest::new(TARGET, Mode::Asvd),
            PlanRequest {
                methods: Methods::of_maps(MapMetric::Asvd { alpha: 1.0 }),
                ..PlanRequest::new(TARGET, Mode::Asvd)
            },
            PlanRequest::new(TARGET, Mode::Sliced),
            PlanRequest { methods: Methods::MAGNITUDE, ..PlanRequest::new(TARGET, Mode::Sliced) },
            with_ridges(Ridges { leverage: 0.5, ..ridges }),
            with_ridges(Ridges { elimination: 0.5, ..ridges }),
            with_ridges(Ridges { refit: 0.5, ..ridges }),
            with_ridges(Ridges { gains: 0.5, ..ridges }),
            with_ridges(Ridges { prefix: 0.5, ..ridges }),
        ];
        let said: std::collections::BTreeSet<String> = requests.into_iter().map(said).collect();
        assert_eq!(said.len(), requests.len());
    }
}
