//! The model card: what this model is, in numbers that do not change from run to run.

use std::fmt::Write;

use modegpt_compress::{Methods, Mode, Report};

use super::Finished;

/// The text of `README.md` in the output.
pub(super) fn write(finished: &Finished<'_>) -> String {
    let Finished { plan, report, calibration, dtype, params, bytes, .. } = finished;
    let (before, after) = *params;
    let totals = &report.totals;
    let mut card = String::new();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let percent = |part: u64, whole: u64| 100.0 * (whole as f64 - part as f64) / whole as f64;
    // Writing to a string cannot fail.
    let _ = write!(
        card,
        "---\ntags:\n- modegpt\n- compressed\n---\n\n\
         # A language model, compressed by {approach}\n\n\
         Compressed without training by {program} {version}.\n\n\
         {methods}. Sparsity was spread {allocation}; errors were weighed in {unit}.\n\n\
         | | before | after | removed |\n| --- | ---: | ---: | ---: |\n\
         | linear weights of the decoder blocks | {block_before} | {block_after} | {block_removed:.2} % |\n\
         | all parameters | {before} | {after} | {all_removed:.2} % |\n\
         | bytes of all weights | {mib_before:.1} MiB | {mib_after:.1} MiB | {bytes_removed:.2} % |\n\n\
         Stored as {dtype}. Calibrated on {n} samples of {seq_len} tokens (SHA-256 of the ids: `{hash}`). \
         Factorisations repeated with more jitter: {fallbacks}.\n\n\
         ## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)\n\
         tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```\n\n\
         `trust_remote_code` is needed because layers differ in shape; `modeling_modegpt.py` in this folder is the code.\n\n\
         ## Layers\n\n",
        approach = approach(plan.methods),
        program = program(plan.mode),
        version = env!("CARGO_PKG_VERSION"),
        methods = plan.methods,
        allocation = plan.allocation,
        unit = plan.unit,
        block_before = totals.block_params_before,
        block_after = totals.block_params_after,
        block_removed = 100.0 * totals.sparsity,
        all_removed = percent(after, before),
        mib_before = mib(bytes.0),
        mib_after = mib(bytes.1),
        bytes_removed = percent(bytes.1, bytes.0),
        dtype = dtype.torch_name(),
        n = calibration.windows.n,
        seq_len = calibration.windows.seq_len,
        hash = calibration.token_hash,
        fallbacks = report.fallbacks,
    );
    card += &if plan.methods.maps.is_some() { map_table(report) } else { module_table(report) };
    let _ = write!(
        card,
        "\nThe plan that was applied is `modegpt_plan.json` (target sparsity {:.4}); `modegpt_report.json` has the table above.\n",
        plan.target
    );
    card
}

fn approach(methods: Methods) -> &'static str {
    if methods.maps.is_some() {
        "low-rank factors of every map"
    } else if methods == Methods::MAGNITUDE || methods == Methods::WANDA {
        "structured pruning"
    } else {
        "modular decomposition"
    }
}

fn program(mode: Mode) -> &'static str {
    match mode {
        Mode::Paper | Mode::Best => "[MoDeGPT](https://arxiv.org/abs/2408.09632) as implemented in modegpt",
        _ => "modegpt",
    }
}

/// Widths and errors of the modules of every layer.
fn module_table(report: &Report) -> String {
    let mut table =
        "Errors are squared, on the calibration samples, as shares of the energy of the exact result; those of the \
         decomposition itself, before any refit on the compressed prefix.\n\n\
         | layer | removed | d_ff | d_qk | d_v | MLP error | query–key error | value–output error |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            .to_owned();
    for layer in &report.layers {
        let _ = writeln!(
            table,
            "| {} | {:.1} % | {} → {} | {} → {} | {} → {} | {:.2e} | {:.2e} | {:.2e} |",
            layer.index,
            100.0 * layer.sparsity,
            layer.before.d_ff,
            layer.after.d_ff,
            layer.before.d_qk,
            layer.after.d_qk,
            layer.before.d_v,
            layer.after.d_v,
            layer.mlp.relative_error,
            layer.query_key.relative_error,
            layer.value_output.relative_error,
        );
    }
    table
}

/// Rank and errors of every map.
fn map_table(report: &Report) -> String {
    let mut table =
        "Every map is a product of two thin ones, or stays dense where such a product would be no smaller. Errors \
         are squared and shares of the exact result: in the metric of the method, and of what the map puts out on the \
         calibration samples.\n\n\
         | layer | map | rank | error in the metric | error of the output |\n| ---: | --- | ---: | ---: | ---: |\n"
            .to_owned();
    for (layer, map) in report.layers.iter().flat_map(|layer| layer.maps.iter().map(move |map| (layer, map))) {
        let rank = map.rank.map_or("dense".to_owned(), |rank| rank.to_string());
        let output = map.output_error.map_or("not known".to_owned(), |error| format!("{error:.2e}"));
        let _ = writeln!(table, "| {} | {} | {rank} | {:.2e} | {output} |", layer.index, map.name, map.relative_error);
    }
    table
}
