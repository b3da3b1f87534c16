use super::*;
use crate::testing::{Random, TinyModel};

fn curve(widths: &[usize], errors: &[f64]) -> ErrorCurve {
    ErrorCurve { widths: widths.to_vec(), errors: errors.to_vec() }
}

/// Curves that fall with the width, as decompositions make them, not all of them convex.
fn random_curves(random: &mut Random, model: &ModelSummary) -> Vec<LayerCurves> {
    let mut falling = |widths: Vec<usize>| {
        let mut errors = vec![0.0];
        for _ in 1..widths.len() {
            errors.push(errors[errors.len() - 1] + random.uniform().powi(3));
        }
        errors.reverse();
        ErrorCurve { widths, errors }
    };
    let rounding = Rounding { ff: 4, head: 2 };
    let layer = |widths: &Widths| {
        let grid = WidthGrid::new(*widths, model.rotary, rounding, 0.9);
        let unit = ErrorUnit::Nats;
        LayerCurves { unit, d_ff: falling(grid.d_ff), d_qk: falling(grid.d_qk), d_v: falling(grid.d_v) }
    };
    model.widths.iter().map(layer).collect()
}

fn tiny() -> ModelSummary {
    ModelSummary::of(&TinyModel { n_layers: 3, ..TinyModel::llama() }.config())
}

fn removed(model: &ModelSummary, widths: &[Widths]) -> f64 {
    let after: u64 = widths.iter().map(|w| model.params(*w)).sum();
    1.0 - after as f64 / model.block_params() as f64
}

#[test]
fn hull_keeps_the_corners_only() {
    // Seen from the present width 5: to 4 costs 1, to 3 costs 1.5 in all, to 2 costs 4, to 1 costs 5.
    let curve = curve(&[1, 2, 3, 4, 5], &[5.0, 4.0, 1.5, 1.0, 0.0]);
    assert_eq!(curve.hull(), [4, 2, 0]);
    assert_eq!(self::curve(&[1, 2, 3, 4], &[4.0, 2.0, 1.0, 0.0]).hull(), [3, 2, 1, 0]);
}

#[test]
fn grid_reaches_from_the_cap_to_the_present_width() {
    let present = Widths { d_ff: 100, d_qk: 14, d_v: 7 };
    let grid = WidthGrid::new(present, true, Rounding { ff: 16, head: 3 }, 0.7);
    assert_eq!(grid, WidthGrid { d_ff: vec![32, 48, 64, 80, 96, 100], d_qk: vec![6, 12, 14], d_v: vec![3, 6, 7] });
}

#[test]
fn targets_are_met_and_more_sparsity_never_costs_less() {
    let model = tiny();
    let mut random = Random::new(1);
    for _ in 0..50 {
        let curves = random_curves(&mut random, &model);
        let mut last = 0.0;
        for sparsity in [0.0, 0.1, 0.3, 0.5, 0.7] {
            let widths = allocate(&model, &curves, sparsity).expect("reachable");
            assert!((removed(&model, &widths) - sparsity).abs() < 0.02, "{}", removed(&model, &widths));
            let error = predicted(&curves, &widths);
            assert!(error >= last - 1e-12);
            last = error;
        }
    }
}

/// Giving every module the same share of its width costs more, at no smaller a size.
#[test]
fn equal_shares_cost_more() {
    let model = tiny();
    let mut random = Random::new(2);
    let (mut ours, mut equal) = (0.0, 0.0);
    for _ in 0..50 {
        let curves = random_curves(&mut random, &model);
        let half = |curve: &ErrorCurve| curve.widths[curve.widths.len() / 2];
        let same: Vec<Widths> =
            curves.iter().map(|c| Widths { d_ff: half(&c.d_ff), d_qk: half(&c.d_qk), d_v: half(&c.d_v) }).collect();
        let widths = allocate(&model, &curves, removed(&model, &same)).expect("reachable");
        assert!((removed(&model, &widths) - removed(&model, &same)).abs() < 0.02);
        ours += predicted(&curves, &widths);
        equal += predicted(&curves, &same);
    }
    assert!(ours < 0.7 * equal, "{ours} {equal}");
}

#[test]
fn free_removals_go_first() {
    let model = tiny();
    let mut curves = random_curves(&mut Random::new(3), &model);
    curves[1].d_v.errors.fill(0.0);
    let widths = allocate(&model, &curves, 0.1).expect("reachable");
    assert_eq!(widths[1].d_v, curves[1].d_v.widths[0]);
}

/// All that is asked for is less than what one module gives for nothing.
#[test]
fn of_what_is_free_a_part_may_go() {
    let model = tiny();
    let mut curves = random_curves(&mut Random::new(5), &model);
    curves[2].d_ff.errors.fill(0.0);
    let mut expected = model.widths.clone();
    expected[2].d_ff = curves[2].d_ff.widths[curves[2].d_ff.widths.len() / 2];
    // Rounding shall not leave out the last step.
    let sparsity = removed(&model, &expected) + 1e-9;
    assert_eq!(allocate(&model, &curves, sparsity).expect("reachable"), expected);
}

#[test]
fn what_the_cap_forbids_is_unreachable() {
    let model = tiny();
    let curves = random_curves(&mut Random::new(4), &model);
    let message = allocate(&model, &curves, 0.95).expect_err("beyond the cap").to_string();
    assert!(message.starts_with("sparsity 0.95 cannot be reached: the widths allowed remove at most 0.8"), "{message}");
}

#[test]
fn curves_of_no_layer_are_refused() {
    let check =
        |widths: &[usize], errors: &[f64]| curve(widths, errors).check("c", 5).expect_err("refused").to_string();
    assert_eq!(check(&[2, 4], &[1.0, 0.0]), "plan, field `c.widths`: expected ascending widths up to 5, found others");
    for (widths, errors) in [(&[5, 4][..], &[0.0, 0.0][..]), (&[0, 5], &[1.0, 0.0]), (&[], &[])] {
        assert!(check(widths, errors).contains("c.widths"));
    }
    for errors in [&[1.0][..], &[f64::NAN, 0.0], &[-1.0, 0.0]] {
        assert!(check(&[4, 5], errors).contains("c.errors"));
    }
}
