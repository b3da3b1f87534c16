//! `modegpt plan`

use std::path::Path;
use std::{fs, io};

use modegpt::architecture::MapName;
use modegpt::compress::{ErrorUnit, Plan};
use modegpt::run::{AllocationChoice, GradientsFolder, Known, StatisticsFolder, check_request, make_plan};

use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{inputs, printer};

/// Runs the command.
pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let model = inputs::open_model(&args.model.model)?;
    let statistics = StatisticsFolder::new(&args.statistics);
    let n_layers = model.config().layers.len();
    let (influences, _) = statistics.influences(n_layers, model.fingerprint())?;
    let request = inputs::plan_request(&model, &args.target, args.fisher)?;
    let dtype = args.dtype.map_or(model.checkpoint.dtype(), inputs::dtype);
    check_request(&model, &request, dtype)?;
    let curves = if request.allocation == AllocationChoice::ErrorCurves {
        let gradients = (request.unit == ErrorUnit::Nats)
            .then(|| GradientsFolder::of_all_layers(&args.statistics, n_layers))
            .transpose()?;
        let known = Known { model: &model, statistics: &statistics, gradients: gradients.as_ref() };
        Some(known.survey(&request, None, &Bars::default())?.0)
    } else {
        None
    };
    let plan = make_plan(&model, &influences, curves, &request, dtype)?;
    let Some(file) = &args.output else {
        return printer::piece(&plan.to_json());
    };
    write_whole(file, &plan.to_json())
        .map_err(|e| Failure::request(format!("cannot write plan `{}`: {e}", file.display())))?;
    if args.json { printer::piece(&plan.to_json()) } else { print(&plan, &file.display().to_string()) }
}

/// Writes a file that appears whole or stays as it was; what is no plain file, such as a pipe, is written to.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return fs::write(path, text);
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn print(plan: &Plan, file: &str) -> Result<(), Failure> {
    let maps = MapName::ALL.into_iter().filter(|name| *name != MapName::Gate || plan.model.gated_mlp);
    let sizes: Vec<String> = match plan.methods.maps {
        None => ["d_ff", "d_qk", "d_v"].map(str::to_owned).to_vec(),
        Some(_) => maps.clone().map(|name| name.to_string()).collect(),
    };
    let mut rows = vec![[["layer", "influence", "asked"].map(str::to_owned).to_vec(), sizes].concat()];
    for layer in &plan.layers {
        let mut row = vec![
            layer.index.to_string(),
            format!("{:.4}", layer.block_influence),
            format!("{:.1} %", 100.0 * layer.sparsity),
        ];
        match plan.methods.maps {
            None => row.extend([layer.d_ff, layer.d_qk, layer.d_v].map(|width| width.to_string())),
            Some(_) => row.extend(
                maps.clone().map(|name| layer.ranks.get(name).map_or("dense".to_owned(), |rank| rank.to_string())),
            ),
        }
        rows.push(row);
    }
    printer::line(&printer::table(&rows))?;
    let totals = &plan.totals;
    printer::line(&format!(
        "\nblock weights {} → {} ({:.2} % removed, {:.2} % asked)\nwritten {file}: edit it, then modegpt compress MODEL --plan {file}",
        printer::grouped(totals.block_params_before),
        printer::grouped(totals.block_params_after),
        100.0 * totals.sparsity,
        100.0 * plan.target,
    ))
}
