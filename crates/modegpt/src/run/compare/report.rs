//! From cells to the report.

use modegpt_compress::ErrorUnit;
use modegpt_report::{
    Ablation, AblationStep, CalibrationFacts, Cell, CompareReport, MethodFacts, ModelFacts, Protocol, TaskFacts,
};

use super::cell::{Dense, Found};
use super::grid::{Grid, Part};
use super::{CompareRun, NamedMethod};
use crate::{PROGRAM, PlanRequest};

/// The report over a complete grid.
pub(super) fn assemble(run: &CompareRun<'_>, grid: &Grid, dense: Dense, known: Vec<Option<Found>>) -> CompareReport {
    let found: Vec<(Part, Found)> =
        grid.asked.iter().map(|asked| asked.part).zip(known.into_iter().flatten()).collect();
    let cells = |part: Part| -> Vec<Cell> {
        found.iter().filter(|(of, _)| *of == part).map(|(_, found)| found.cell.clone()).collect()
    };
    let draws = run
        .draws
        .iter()
        .filter_map(|drawn| found.iter().map(|(_, found)| &found.draw).find(|draw| draw.seed == drawn.seed).cloned());
    let gradients = grid.asked.iter().any(|asked| asked.request.unit == ErrorUnit::Nats);
    let mut sparsities = run.sparsities.to_vec();
    sparsities.sort_by(f64::total_cmp);
    let first_seed = run.draws.first().map(|draw| draw.seed);
    // What layers offer does not depend on the sparsity.
    let curves = run.methods.iter().filter_map(|method| {
        let of_method = |(part, found): &&(Part, Found)| {
            *part == Part::Grid && found.cell.method == method.name() && Some(found.cell.seed) == first_seed
        };
        found.iter().find(of_method)?.1.curves.clone()
    });
    CompareReport {
        version: CompareReport::VERSION,
        methods: run.methods.iter().map(|method| facts(run, method)).collect(),
        sparsities,
        cells: cells(Part::Grid),
        curves: curves.collect(),
        ablation: grid.ablated.map(|sparsity| Ablation {
            sparsity,
            added: steps(grid, &found, Part::Added),
            left_out: steps(grid, &found, Part::LeftOut),
        }),
        protocol: Protocol {
            program: PROGRAM.to_owned(),
            command: run.command.to_owned(),
            device: run.device.to_owned(),
            model: model_facts(run),
            calibration: CalibrationFacts {
                texts: run.calibration_texts.clone(),
                n_samples: run.draws.first().map_or(0, |draw| draw.calibration.windows.n),
                seq_len: run.draws.first().map_or(0, |draw| draw.calibration.windows.seq_len),
                gradient_tokens: gradients.then_some(run.gradient_tokens),
                draws: draws.collect(),
            },
            texts: dense.texts,
            tasks: run.tasks.iter().map(task_facts).collect(),
            reading: run.reading.map(|(_, how)| how.to_owned()),
            prompt: run.prompt.to_owned(),
            sample_tokens: run.sample_tokens,
        },
        dense: dense.measured,
    }
}

/// The steps of one part of the ablation, with the cells of all draws.
fn steps(grid: &Grid, found: &[(Part, Found)], part: fn(usize) -> Part) -> Vec<AblationStep> {
    let labels = grid.asked.iter().filter(|asked| asked.draw == 0);
    (0..)
        .map_while(|step| labels.clone().find(|asked| asked.part == part(step)).map(|asked| (step, &asked.method)))
        .map(|(step, label)| AblationStep {
            label: label.clone(),
            cells: found.iter().filter(|(of, _)| *of == part(step)).map(|(_, found)| found.cell.clone()).collect(),
        })
        .collect()
}

fn model_facts(run: &CompareRun<'_>) -> ModelFacts {
    ModelFacts {
        name: run.model_name.to_owned(),
        fingerprint: run.model.fingerprint().to_owned(),
        params: run.model.params(),
        block_params: run.model.config().block_params() as u64,
        bytes: run.model.checkpoint.bytes(),
        n_layers: run.model.config().layers.len(),
    }
}

fn task_facts(task: &crate::EncodedTask) -> TaskFacts {
    let protocol = task.protocol();
    TaskFacts {
        name: task.name().to_owned(),
        n: task.n(),
        file_hash: protocol.file_hash.clone(),
        token_hash: protocol.token_hash.clone(),
    }
}

fn facts(run: &CompareRun<'_>, method: &NamedMethod) -> MethodFacts {
    let request = run.draws.first().map(|draw| method.request_for(0.3, run.model.config(), &draw.calibration));
    let description = request.map_or_else(String::new, |request| describe(&request));
    MethodFacts { name: method.name().to_owned(), description }
}

/// A method in a line.
fn describe(request: &PlanRequest) -> String {
    let unit = match request.unit {
        ErrorUnit::Nats => "; errors weighed with gradients of the loss",
        ErrorUnit::ResidualEnergy | ErrorUnit::MapEnergy => "",
    };
    format!("{}; spread {}{unit}", request.methods, request.allocation)
}
