//! A report as a run over a model of 30 layers gives it, with numbers made up by smooth rules.

use crate::{
    Ablation, AblationStep, CalibrationFacts, Cell, CompareReport, Curve, Draw, LayerCurves, LayerFacts, Measured,
    MethodCurves, MethodFacts, ModelFacts, PerModule, Prediction, Protocol, TaskAccuracy, TaskFacts, TextFacts,
    TextScore,
};

const N_LAYERS: usize = 30;
const DENSE: f64 = 22.06;
const METHODS: [(&str, &str, f64); 6] = [
    ("paper", "MLP: ridge leverage and Nyström; query–key: CR; value–output: SVD on values; by block influence", 1.14),
    ("paper-uniform", "MLP: ridge leverage and Nyström; query–key: CR; value–output: SVD on values; uniform", 0.87),
    (
        "best",
        "MLP: elimination with refit; query–key: by logits, with refit; value–output: SVD on what attention delivers; by error curves",
        0.52,
    ),
    ("best-fisher", "as best, errors weighed with gradients of the loss", 0.46),
    ("svd-llm", "every matrix by itself: truncated SVD, whitened by its inputs", 1.42),
    ("svd", "every matrix by itself: truncated SVD", 6.9),
];

/// The report.
pub(crate) fn report() -> CompareReport {
    let (sparsities, seeds) = (vec![0.2, 0.3, 0.4], [0, 1, 2]);
    let grid = METHODS.iter().flat_map(|&(method, _, at_30)| {
        let cells = sparsities.iter().flat_map(move |&s| seeds.map(|seed| cell(method, s, seed, at_30)));
        cells.collect::<Vec<_>>()
    });
    let cells: Vec<Cell> = grid.collect();
    CompareReport {
        version: CompareReport::VERSION,
        protocol: protocol(seeds),
        methods: METHODS
            .map(|(name, what, _)| MethodFacts { name: name.to_owned(), description: what.to_owned() })
            .to_vec(),
        sparsities,
        dense: measured(DENSE, 0.0, None),
        cells,
        curves: vec![MethodCurves {
            method: "best".to_owned(),
            unit: "share of the residual stream’s energy".to_owned(),
            layers: (0..N_LAYERS).map(curves).collect(),
        }],
        ablation: Some(ablation(seeds)),
    }
}

fn protocol(seeds: [u64; 3]) -> Protocol {
    let hash = |n: u64| format!("{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(4);
    let draw = |seed| Draw { seed, token_hash: hash(seed + 1), forward_secs: 171.0, backward_secs: Some(93.0) };
    Protocol {
        program: "modegpt 0.1.0".to_owned(),
        command: "modegpt compare smollm2-135m --methods paper,paper-uniform,best,best-fisher,svd-llm,svd --sparsity \
                  0.2,0.3,0.4 --seeds 0,1,2 --calibration wiki.valid.raw --samples 32 --seq-len 1024 --text wiki.test.raw \
                  --against-dense --ablate -o report"
            .to_owned(),
        device: "cpu (2 threads)".to_owned(),
        model: ModelFacts {
            name: "smollm2-135m".to_owned(),
            fingerprint: hash(11),
            params: 134_515_008,
            block_params: 106_168_320,
            bytes: 538_060_032,
            n_layers: N_LAYERS,
        },
        calibration: CalibrationFacts {
            texts: vec!["wiki.valid.raw".to_owned()],
            n_samples: 32,
            seq_len: 1024,
            gradient_tokens: Some(2048),
            draws: seeds.map(draw).to_vec(),
        },
        texts: vec![TextFacts {
            name: "wiki.test.raw".to_owned(),
            token_hash: hash(12),
            n_windows: 6,
            seq_len: 2048,
            stride: 2048,
            n_tokens: 12_282,
        }],
        tasks: vec![TaskFacts { name: "piqa".to_owned(), n: 1838, file_hash: hash(13), token_hash: hash(14) }],
        reading: Some("16 prompts of 64 tokens at once, median of 3 runs or more".to_owned()),
        prompt: "The history of the bridge began".to_owned(),
        sample_tokens: 40,
    }
}

/// A number in `[-1, 1]` that looks random.
fn noise(a: f64, b: f64, c: f64) -> f64 {
    (12.9898 * a + 78.233 * b + 37.719 * c).sin()
}

fn measured(perplexity: f64, removed: f64, against: Option<f64>) -> Measured {
    Measured {
        texts: vec![TextScore {
            perplexity,
            kl_divergence: against.map(|rise| 0.9 * rise),
            top1_agreement: against.map(|rise| 0.97 * (-0.45 * rise).exp()),
        }],
        tasks: vec![TaskAccuracy {
            acc: 0.667 - 0.12 * against.unwrap_or(0.0).min(1.2),
            acc_stderr: Some(0.011),
            acc_norm: Some(0.68 - 0.12 * against.unwrap_or(0.0).min(1.2)),
            acc_norm_stderr: Some(0.011),
        }],
        tokens_per_sec_alone: Some(97.0 * (1.0 + 0.4 * removed)),
        tokens_per_sec: Some(213.0 * (1.0 + 0.68 * removed + 0.02 * noise(removed, perplexity, 0.0))),
        params: 134_515_008 - (106_168_320.0 * removed) as u64,
        bytes: 538_060_032 - (424_673_280.0 * removed) as u64,
        sample: if removed < 0.25 {
            "in 1842, when the town council asked the engineer John Rennie to draw a plan for a crossing of the river. The \
             bridge was opened in 1846 and carried the road until the flood of 1913."
        } else {
            "in the 19th century, when the bridge was built in the town of the river. The bridge was the first of the \
             bridge, and the bridge was the bridge of the"
        }
        .to_owned(),
    }
}

fn cell(method: &str, sparsity: f64, seed: u64, at_30: f64) -> Cell {
    let key = method.len() as f64;
    let rise = at_30 * (sparsity / 0.3_f64).powf(1.35) * (1.0 + 0.02 * noise(seed as f64, sparsity, key));
    let removed = sparsity + 0.001 * noise(key, sparsity, 1.0);
    Cell {
        method: method.to_owned(),
        sparsity,
        seed,
        removed,
        measured: measured(DENSE * rise.exp(), removed, Some(rise)),
        secs: if method.starts_with("best") { 21.0 } else { 8.4 },
        predicted: method.starts_with("best").then(|| Prediction {
            error: 0.4 * rise,
            unit: if method == "best" { "residual energy" } else { Prediction::NATS }.to_owned(),
        }),
        fallbacks: 0,
        layers: (0..N_LAYERS).map(|layer| layer_facts(layer, key, sparsity, rise)).collect(),
    }
}

fn layer_facts(layer: usize, key: f64, sparsity: f64, rise: f64) -> LayerFacts {
    let before = PerModule { mlp: 1536, query_key: 64, value_output: 64 };
    let bump = (-((layer as f64 - 15.0) / 7.0).powi(2)).exp();
    let share = |scale: f64| (sparsity * scale * (0.55 + bump * key / 6.0)).clamp(0.0, 0.9);
    let (mlp, query_key, value_output) = (share(1.1), share(0.9), share(0.35));
    let width = |full: usize, share: f64| ((full as f64 * (1.0 - share) / 8.0).round() * 8.0).max(8.0) as usize;
    let after =
        PerModule { mlp: width(1536, mlp), query_key: width(64, query_key), value_output: width(64, value_output) };
    LayerFacts {
        before,
        after,
        removed: PerModule { mlp, query_key, value_output },
        predicted: PerModule { mlp: 0.02 * rise, query_key: 0.01, value_output: 0.003 },
        incurred: Some(0.004 * rise * (layer as f64 + 1.0).powf(1.2) * (1.0 + 0.15 * noise(layer as f64, key, 2.0))),
    }
}

fn curves(layer: usize) -> LayerCurves {
    let curve = |full: usize, step: usize, scale: f64| {
        let widths: Vec<usize> = (full / 8 / step + 1..=full / step).map(|n| n * step).collect();
        let depth = 1.0 + 0.6 * noise(layer as f64, scale, 3.0);
        let errors =
            widths.iter().map(|w| scale * depth * ((1.0 - *w as f64 / full as f64) * 3.0).powf(2.4) / 100.0).collect();
        Curve { widths, errors }
    };
    PerModule { mlp: curve(1536, 64, 1.0), query_key: curve(64, 8, 0.5), value_output: curve(64, 8, 3.0) }
}

fn ablation(seeds: [u64; 3]) -> Ablation {
    let step = |&(label, at_30): &(&str, f64)| AblationStep {
        label: label.to_owned(),
        cells: seeds.map(|seed| cell(label, 0.3, seed, at_30)).to_vec(),
    };
    let added = [
        ("paper", 1.14),
        ("+ elimination (MLP)", 1.06),
        ("+ refit (query–key)", 0.93),
        ("+ attention (value–output)", 0.8),
        ("+ error curves (allocation)", 0.55),
        ("+ gradients", 0.46),
        ("+ compressed prefix", 0.45),
    ];
    let left_out = [
        ("everything", 0.45),
        ("− elimination (MLP)", 0.49),
        ("− refit (query–key)", 0.53),
        ("− attention (value–output)", 0.51),
        ("− error curves (allocation)", 0.74),
        ("− gradients", 0.52),
        ("− compressed prefix", 0.46),
    ];
    Ablation { sparsity: 0.3, added: added.iter().map(step).collect(), left_out: left_out.iter().map(step).collect() }
}

/// The fields of a table as in RFC 4180.
pub(crate) fn parse_csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            other => field.push(other),
        }
    }
    assert!(!quoted && field.is_empty() && row.is_empty(), "the table ends in the middle of a row");
    rows
}
