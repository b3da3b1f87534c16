//! `modegpt calibrate`

use std::time::Instant;

use modegpt::calibration::Collect;
use modegpt::compress::Methods;
use modegpt::run::{CalibrationRun, StatisticsFolder, calibrate, merge_statistics};
use serde_json::json;

use crate::args::CalibrateArgs;
use crate::commands::compress::{announce, run_of, with_row_fisher};
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{device, inputs, printer, process_memory};

/// Runs the command.
pub(crate) fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let begin = Instant::now();
    device::set_threads(args.common.threads);
    let existing = inputs::existing(args.existing.force, args.existing.resume);
    let model = inputs::open_model(&args.model.model)?;
    let folder = if args.merge.is_empty() {
        let found = device::open(args.common.device)?;
        let calibration = inputs::draw_calibration(&model, &args.calibration)?;
        let bars = Bars::default();
        // Whatever a later compression may need.
        let methods = args.mode.map(|name| inputs::mode(name).methods());
        let needs = |what: fn(&Methods) -> bool| args.inputs || methods.is_some_and(|methods| what(&methods));
        let (inputs, magnitudes) = (needs(Methods::needs_inputs), needs(Methods::needs_magnitudes));
        let collect = Collect { logits: true, inputs, magnitudes };
        let run = run_of(&model, &calibration, &found, &args.calibration, collect, args.common.batch_tokens, &bars)?;
        let labelled = inputs::labelled(&model, &args.calibration)?;
        let run = CalibrationRun { labelled: labelled.as_ref(), ..run };
        let run = with_row_fisher(&run, methods.is_some_and(|methods| methods.needs_row_fisher()));
        announce(&model, &calibration, &found, run.memory_plan(false));
        pollster::block_on(calibrate(&run, &args.output, existing))?
    } else {
        let parts: Vec<StatisticsFolder> = args.merge.iter().map(StatisticsFolder::new).collect();
        merge_statistics(&model, &parts, &args.output, existing)?
    };
    let statistics = StatisticsFolder::new(&folder);
    let (influences, header) = statistics.influences(model.config().layers.len(), model.fingerprint())?;
    if args.common.json {
        return printer::json(&json!({
            "output": folder.display().to_string(),
            "token_hash": header.token_hash,
            "n_samples": header.n_samples,
            "seq_len": header.seq_len,
            "block_influence": influences,
            "peak_host_bytes": process_memory::peak_host_bytes(),
            "secs": begin.elapsed().as_secs_f64(),
        }));
    }
    let mut rows = vec![vec!["layer".to_owned(), "block influence".to_owned()]];
    rows.extend(influences.iter().enumerate().map(|(layer, bi)| vec![layer.to_string(), format!("{bi:.4}")]));
    printer::line(&printer::table(&rows))?;
    printer::line("")?;
    printer::line(&format!("written  {}", folder.display()))?;
    printer::line(&format!("time     {:.1} s", begin.elapsed().as_secs_f64()))
}
