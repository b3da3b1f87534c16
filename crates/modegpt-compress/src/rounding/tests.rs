//! Widths over many models and targets.

use super::*;
use crate::testing::{Random, TinyModel};

fn model(n_layers: usize, d_ff: usize, d_head: usize, n_kv_heads: usize, rotary: bool) -> ModelConfig {
    TinyModel { n_layers, n_kv_heads, d_head, d_ff, rotary, ..TinyModel::default() }.config()
}

fn params(config: &ModelConfig, widths: &[Widths]) -> f64 {
    let model = ModelSummary::of(config);
    widths.iter().map(|widths| model.params(*widths) as f64).sum()
}

#[test]
fn defaults_are_coarse_for_real_models_and_fine_for_tiny_ones() {
    let check = |d_ff, d_head, rotary, ff, head| {
        assert_eq!(Rounding::default_for(&model(2, d_ff, d_head, 4, rotary)), Rounding { ff, head, rank: 1 });
    };
    check(11008, 128, true, 64, 8);
    check(1536, 64, true, 64, 8);
    check(172, 8, true, 4, 2);
    check(256, 16, false, 8, 2);
    check(20, 4, false, 1, 1);
    for (d_model, rank) in [(576, 8), (96, 4), (64, 2)] {
        assert_eq!(Rounding::default_for(&TinyModel { d_model, ..TinyModel::default() }.config()).rank, rank);
    }
}

#[test]
fn no_sparsity_keeps_every_width() {
    for d_ff in [172, 1000, 1537] {
        let config = model(3, d_ff, 12, 2, true);
        for rounding in [
            Rounding::default_for(&config),
            Rounding { ff: 64, head: 8, rank: 8 },
            Rounding { ff: 5, head: 3, rank: 8 },
        ] {
            let widths = round_widths(&config, &[0.0; 3], rounding).expect("in range");
            assert_eq!(widths, ModelSummary::of(&config).widths);
        }
    }
}

/// Over many models and targets: every width is allowed, and the target is met or no step of an MLP comes closer.
#[test]
fn targets_are_met_within_the_steps_that_exist() {
    let mut random = Random::new(3);
    let mut met = 0;
    for trial in 0..2000 {
        let rotary = trial % 2 == 0;
        let d_head = 4 * (1 + random.below(32));
        let config = model(1 + random.below(24), 8 + random.below(4000), d_head, [1, 2, 4][trial % 3], rotary);
        let rounding = if trial % 5 == 0 {
            Rounding { ff: 1 + random.below(100), head: 1 + random.below(10), rank: 8 }
        } else {
            Rounding::default_for(&config)
        };
        let mean = random.uniform() * 0.95;
        let sparsities: Vec<f64> =
            config.layers.iter().map(|_| (mean + 0.2 * (random.uniform() - 0.5)).clamp(0.0, 0.97)).collect();
        let widths = round_widths(&config, &sparsities, rounding).expect("in range");
        check_allowed(&config, &widths, rounding);

        let target: f64 = config
            .layers
            .iter()
            .zip(&sparsities)
            .map(|(shape, s)| (1.0 - s) * config.linear_params(shape) as f64)
            .sum();
        let missing = target - params(&config, &widths);
        let step = (rounding.ff * config.mlp_params(1)) as f64;
        let exhausted = if missing > 0.0 {
            widths.iter().zip(&config.layers).all(|(widths, shape)| widths.d_ff == shape.d_ff)
        } else {
            widths.iter().all(|widths| widths.d_ff <= rounding.ff)
        };
        let close = missing.abs() <= TOLERANCE * config.block_params() as f64;
        assert!(close || missing.abs() <= step / 2.0 || exhausted, "{rounding:?}, missing {missing}, step {step}");
        met += usize::from(close);
    }
    assert!(met > 1700, "only {met} of 2000 within 0.5 %");
}

fn check_allowed(config: &ModelConfig, widths: &[Widths], rounding: Rounding) {
    let allowed = |width: usize, dense: usize, multiple: usize| {
        width == dense || (width > 0 && width < dense && width.is_multiple_of(multiple))
    };
    for (widths, shape) in widths.iter().zip(&config.layers) {
        assert!(allowed(widths.d_ff, shape.d_ff, rounding.ff), "{widths:?}, {rounding:?}");
        assert!(allowed(widths.d_qk, shape.d_qk, rounding.head), "{widths:?}, {rounding:?}");
        assert!(allowed(widths.d_v, shape.d_v, rounding.head), "{widths:?}, {rounding:?}");
        assert!(!config.is_rotary() || widths.d_qk.is_multiple_of(2), "{widths:?}");
    }
}

#[test]
fn models_of_real_size_meet_every_target_within_half_a_percent() {
    for (d_ff, d_head, n_kv_heads, rotary) in [(3072, 64, 12, false), (1536, 64, 3, true), (11008, 128, 32, true)] {
        let config = TinyModel {
            n_layers: 12,
            d_ff,
            d_head,
            n_heads: n_kv_heads,
            n_kv_heads,
            rotary,
            d_model: d_head * n_kv_heads,
            ..TinyModel::default()
        }
        .config();
        for percent in 0..=90 {
            let sparsity = f64::from(percent) / 100.0;
            let widths = round_widths(&config, &[sparsity; 12], Rounding::default_for(&config)).expect("in range");
            let achieved = 1.0 - params(&config, &widths) / config.block_params() as f64;
            assert!((achieved - sparsity).abs() <= TOLERANCE, "d_ff {d_ff}: {achieved} instead of {sparsity}");
        }
    }
}

#[test]
fn heads_move_where_the_mlp_is_exhausted() {
    // Removing 7 % by uniform rounding would take 8 of 64 from every head, more than all that was asked for.
    let config = TinyModel {
        n_layers: 4,
        d_ff: 16,
        d_head: 64,
        n_heads: 4,
        n_kv_heads: 4,
        rotary: true,
        d_model: 256,
        ..TinyModel::default()
    }
    .config();
    let widths = round_widths(&config, &[0.07; 4], Rounding { ff: 4, head: 8, rank: 8 }).expect("in range");
    let achieved = 1.0 - params(&config, &widths) / config.block_params() as f64;
    assert!((achieved - 0.07).abs() < 0.01, "{achieved}: {widths:?}");
    assert!(widths.iter().any(|widths| widths.d_qk == 64) && widths.iter().any(|widths| widths.d_qk == 56));
}
