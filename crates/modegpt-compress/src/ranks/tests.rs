//! Ranks within a budget, none that makes a map larger, and curves that are those of a model.

use serde_json::json;

use super::*;
use crate::testing::{Random, TinyModel};

fn config(n_layers: usize, gated: bool) -> ModelConfig {
    TinyModel { n_layers, gated, ..TinyModel::default() }.config()
}

fn rounding(rank: usize) -> Rounding {
    Rounding { ff: 4, head: 2, rank }
}

fn removed(config: &ModelConfig, ranks: &[FactorRanks]) -> f64 {
    let model = ModelSummary::of(config);
    let after: u64 = model.widths.iter().zip(ranks).map(|(widths, ranks)| model.params_at(*widths, ranks)).sum();
    1.0 - after as f64 / model.block_params() as f64
}

#[test]
fn maps_are_those_of_the_configuration() {
    for model in [TinyModel::opt(), TinyModel::llama()] {
        let config = model.config();
        let found: Vec<_> = ModelSummary::of(&config).maps((&config.layers[0]).into()).collect();
        let expected: Vec<_> =
            config.map_shapes(&config.layers[0]).map(|map| MapShape { bias: false, ..map }).collect();
        assert_eq!(found, expected);
        let (summary, ranks) = (ModelSummary::of(&config), FactorRanks { up: Some(3), ..FactorRanks::default() });
        let shape = modegpt_architecture::LayerShape { ranks, ..config.layers[0].clone() };
        assert_eq!(summary.params_at((&shape).into(), &ranks), config.linear_params(&shape) as u64);
        assert_eq!(summary.params_at((&shape).into(), &FactorRanks::default()), summary.params((&shape).into()));
    }
}

#[test]
fn no_rank_on_a_grid_saves_nothing_and_the_next_one_would() {
    for (d_in, d_out) in [(1, 1), (1, 7), (2, 2), (3, 5), (32, 48), (97, 31), (96, 96)] {
        let map = MapShape { name: MapName::Up, d_in, d_out, bias: false, rank: None };
        for multiple in [1, 2, 3, 8, usize::MAX] {
            let grid = rank_grid(&map, multiple, 1.0);
            assert!(
                grid.iter().all(|&rank| rank.is_multiple_of(multiple) && params(&map, Some(rank)) < params(&map, None))
            );
            assert!(grid.iter().enumerate().all(|(place, &rank)| rank == (place + 1) * multiple));
            let next = grid.len().saturating_add(1).saturating_mul(multiple);
            assert!(next as u128 * (d_in + d_out) as u128 >= (d_in * d_out) as u128, "{d_in} x {d_out}, {multiple}");
            for &rank in &rank_grid(&map, multiple, 0.6) {
                assert!(params(&map, Some(rank)) as f64 >= 0.4 * params(&map, None) as f64 - 1e-9);
            }
        }
    }
}

#[test]
fn every_map_gives_the_same_share_and_the_budget_is_met() {
    let mut random = Random::new(1);
    for gated in [false, true] {
        let config = config(3, gated);
        for _ in 0..40 {
            let sparsity = 0.05 + 0.75 * random.uniform();
            let ranks = round_ranks(&config, &[sparsity; 3], rounding(1)).expect("reachable");
            // The smallest step is one rank of a map of 32 inputs and 16 outputs.
            let step = 48.0 / config.block_params() as f64;
            assert!((removed(&config, &ranks) - sparsity).abs() <= step, "{sparsity}: {}", removed(&config, &ranks));
            for (shape, ranks) in config.layers.iter().zip(&ranks) {
                for map in config.map_shapes(shape) {
                    let ideal = (1.0 - sparsity) * (map.d_in * map.d_out) as f64 / (map.d_in + map.d_out) as f64;
                    let rank = ranks.get(map.name).unwrap_or(map.break_even_rank());
                    assert!((rank as f64 - ideal).abs() <= 2.0, "{sparsity}, {}: {rank} for {ideal}", map.name);
                }
            }
        }
    }
}

#[test]
fn nothing_asked_leaves_everything_dense_and_layers_may_differ() {
    let config = config(2, true);
    let ranks = round_ranks(&config, &[0.0; 2], rounding(4)).expect("nothing to do");
    assert!(ranks.iter().all(FactorRanks::is_dense));
    let ranks = round_ranks(&config, &[0.6, 0.1], rounding(1)).expect("reachable");
    assert!(ranks[0].up < ranks[1].up && ranks[0].query < ranks[1].query, "{ranks:?}");
    assert!((removed(&config, &ranks) - 0.35).abs() < 0.01);
}

#[test]
fn what_cannot_be_reached_says_what_can() {
    let config = config(1, true);
    // A rank of 16 makes no map of 32 by 32 smaller, and those of 32 by 48 by a sixth.
    let error = round_ranks(&config, &[0.3], rounding(16)).expect_err("ranks are too coarse").to_string();
    assert!(error.starts_with("sparsity 0.3") && error.contains("the ranks allowed remove at most 0."), "{error}");
    round_ranks(&config, &[0.3], rounding(0)).expect_err("a multiple of zero");
    round_ranks(&config, &[1.0], rounding(1)).expect_err("nothing would be left");
    round_ranks(&config, &[0.3; 2], rounding(1)).expect_err("one layer too many");
}

fn curves(config: &ModelConfig, error: impl Fn(usize, MapName, usize) -> f64) -> Vec<MapCurves> {
    let of_layer = |(layer, shape): (usize, &modegpt_architecture::LayerShape)| {
        let maps = config.map_shapes(shape).map(|map| {
            let ranks = rank_grid(&map, 1, 0.9);
            let errors = ranks.iter().map(|&rank| error(layer, map.name, rank)).collect();
            (map.name, RankCurve { ranks, errors })
        });
        maps.collect()
    };
    config.layers.iter().enumerate().map(of_layer).collect()
}

#[test]
fn curves_take_from_maps_that_lose_least() {
    let config = config(2, true);
    let model = ModelSummary::of(&config);
    // The up map of the second layer has nothing beyond rank 5, everything else loses much at once.
    let offered = curves(&config, |layer, name, rank| match (layer, name) {
        (1, MapName::Up) => {
            if rank >= 5 {
                0.0
            } else {
                10.0
            }
        }
        _ => 100.0 - rank as f64,
    });
    let share = (32.0 * 48.0 - 5.0 * 80.0) / config.block_params() as f64;
    let ranks = allocate_ranks(&model, &offered, share).expect("reachable");
    assert_eq!(ranks[0], FactorRanks::default());
    assert_eq!(ranks[1], FactorRanks { up: Some(5), ..FactorRanks::default() });
    assert!((removed(&config, &ranks) - share).abs() < 1e-12);
    assert!(predicted_at_ranks(&offered, &ranks).abs() < 1e-300);
    let off = [ranks[0], FactorRanks { up: Some(1), ..ranks[1] }];
    assert!(predicted_at_ranks(&offered, &off).is_nan());
    let error = allocate_ranks(&model, &offered, 0.95).expect_err("below the lowest ranks").to_string();
    assert!(error.contains("the ranks allowed remove at most 0."), "{error}");
}

#[test]
fn curves_of_other_maps_are_refused_by_name() {
    let config = config(1, false);
    let (model, good) = (ModelSummary::of(&config), curves(&config, |_, _, _| 1.0).remove(0));
    let check = |change: &dyn Fn(&mut MapCurves), expected: &str| {
        let mut curves = good.clone();
        change(&mut curves);
        let refused = model.check_map_curves("layers[0].map_curves", model.widths[0], &curves);
        let message = refused.expect_err(expected).to_string();
        assert!(message.starts_with(&format!("plan, field `layers[0].map_curves.{expected}`")), "{message}");
    };
    model.check_map_curves("", model.widths[0], &good).expect("its own");
    let up = good[&MapName::Up].clone();
    check(&|curves| drop(curves.insert(MapName::Gate, up.clone())), "gate");
    check(&|curves| drop(curves.insert(MapName::Up, RankCurve { ranks: vec![], errors: vec![] })), "up.ranks");
    check(&|curves| drop(curves.insert(MapName::Up, RankCurve { ranks: vec![0], errors: vec![1.0] })), "up.ranks");
    check(
        &|curves| drop(curves.insert(MapName::Up, RankCurve { ranks: vec![3, 2], errors: vec![1.0; 2] })),
        "up.ranks",
    );
    check(&|curves| drop(curves.insert(MapName::Up, RankCurve { ranks: vec![20], errors: vec![1.0] })), "up.ranks");
    check(&|curves| drop(curves.insert(MapName::Up, RankCurve { ranks: vec![2], errors: vec![] })), "up.errors");
    check(
        &|curves| drop(curves.insert(MapName::Up, RankCurve { ranks: vec![2], errors: vec![f64::NAN] })),
        "up.errors",
    );
    let text = json!({"up": {"ranks": [1], "errors": [0.5], "extra": 1}});
    serde_json::from_value::<MapCurves>(text).expect_err("an unknown field");
    serde_json::from_value::<MapCurves>(json!({"sideways": {"ranks": [1], "errors": [0.5]}})).expect_err("no map");
}
