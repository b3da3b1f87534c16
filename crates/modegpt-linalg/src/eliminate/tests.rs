use super::*;
use crate::nystrom::rows_of;
use crate::testing::{Random, assert_near, correlated_rows, gram_of, random_gram};
use crate::{factorise, nystrom, reference, ridge_leverage, select_by_leverage};

const D_MODEL: usize = 5;

fn options(relative_ridge: f64) -> EliminationOptions {
    EliminationOptions { relative_ridge, ..EliminationOptions::default() }
}

fn random_down(dim: usize, seed: u64) -> Mat<f64> {
    Random::new(seed).matrix(dim, D_MODEL)
}

/// Hidden units of few causes, through a rectifier: unequal, redundant, some of them rarely firing.
fn relu_rows(dim: usize, n_rows: usize, seed: u64) -> Mat<f64> {
    let mut random = Random::new(seed);
    let mixed = random.matrix(n_rows, dim / 3 + 1) * random.matrix(dim / 3 + 1, dim);
    let own = random.matrix(n_rows, dim);
    let scales: Vec<f64> = (0..dim).map(|_| random.normal().exp()).collect();
    Mat::from_fn(n_rows, dim, |t, j| (mixed[(t, j)] + own[(t, j)] - 1.0).max(0.0) * scales[j])
}

fn assert_lawful(elimination: &Elimination, dim: usize, smallest: usize) {
    let mut all = [elimination.order.clone(), elimination.kept(smallest)].concat();
    all.sort_unstable();
    assert_eq!(all, (0..dim).collect::<Vec<_>>());
    assert_eq!(elimination.smallest(), smallest);
    assert_eq!(elimination.errors.len(), dim - smallest + 1);
    assert!(elimination.errors[0].abs() <= 0.0 && elimination.errors.iter().all(|error| error.is_finite()));
    assert!(elimination.errors.is_sorted(), "{:?}", elimination.errors);
}

#[test]
fn order_is_that_of_the_reference_whatever_the_block() {
    for dim in [1, 2, 7, 33, 64] {
        for (relative_ridge, metric) in [(0.0, None), (1e-4, Some(random_gram(D_MODEL, 8, 3))), (0.1, None)] {
            let gram = random_gram(dim, 2 * dim + 5, 1);
            let down = random_down(dim, 2);
            let dense_metric = metric.as_ref().map_or_else(|| Mat::identity(D_MODEL, D_MODEL), Gram::to_mat);
            let ridge = relative_ridge * gram.mean_diagonal();
            let expected =
                reference::eliminate_units(gram.to_mat().as_ref(), down.as_ref(), dense_metric.as_ref(), ridge, 0);
            for block in [0, 1, 3, 32, 100] {
                let options = EliminationOptions { block, ..options(relative_ridge) };
                let elimination =
                    eliminate_units(&gram, down.as_ref(), metric.as_ref(), &options).expect("positive definite");
                assert_eq!(elimination.order, expected, "{dim} units, ridge {relative_ridge}, block {block}");
                assert_lawful(&elimination, dim, 0);
            }
        }
    }
}

#[test]
fn errors_are_those_of_the_refit_at_every_rank() {
    for dim in [1, 7, 33, 64] {
        let hidden = correlated_rows(dim, 4 * dim + 9, 4);
        let gram = gram_of(hidden.as_ref());
        let down = random_down(dim, 5);
        let metric = random_gram(D_MODEL, 9, 6);
        let plain = eliminate_units(&gram, down.as_ref(), None, &options(0.0)).expect("positive definite");
        let weighed = eliminate_units(&gram, down.as_ref(), Some(&metric), &options(1e-4)).expect("positive definite");
        assert_eq!((plain.jitter, plain.error_jitter), Default::default());
        for k in 0..dim {
            let refit = nystrom(&gram, &plain.kept(k), down.as_ref(), 0.0).expect("positive definite");
            assert_near(plain.error(k), refit.error, 1e-9);
            // The refit is the best in every metric of the outputs.
            let kept = weighed.kept(k);
            let refit = nystrom(&gram, &kept, down.as_ref(), 0.0).expect("positive definite").down;
            let residual = &hidden * &down - rows_of(hidden.transpose(), &kept).transpose() * refit;
            let products = gram_of(residual.as_ref()).to_mat() * metric.to_mat();
            assert_near(weighed.error(k), (0..D_MODEL).map(|i| products[(i, i)]).sum(), 1e-9);
        }
    }
}

#[test]
fn elimination_loses_less_than_selection_by_leverage() {
    let dim = 48;
    let (mut eliminated, mut leveraged) = (0.0, 0.0);
    for seed in 0..12 {
        let gram = gram_of(relu_rows(dim, 200, seed).as_ref());
        let down = random_down(dim, 100 + seed);
        let elimination = eliminate_units(&gram, down.as_ref(), None, &options(1e-4)).expect("a ridge");
        let leverage = ridge_leverage(&gram, 1e-4).expect("a ridge");
        let energy = elimination.error(0);
        for k in [12, 24, 36] {
            let kept = select_by_leverage(&leverage, &gram, k);
            eliminated += elimination.error(k) / energy;
            leveraged += nystrom(&gram, &kept, down.as_ref(), 0.0).expect("definite").error / energy;
        }
    }
    assert!(eliminated < 0.9 * leveraged, "{eliminated} and {leveraged}");
}

#[test]
fn metric_changes_the_selection() {
    // Alike but for the output they write to; the metric asks for one output only.
    let gram = gram_of(Mat::<f64>::identity(4, 4).as_ref());
    let down = faer::mat![[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]];
    let metric = Gram::from_packed_lower(2, vec![0.0, 0.0, 1.0]).expect("3");
    let plain = eliminate_units(&gram, down.as_ref(), None, &options(1e-4)).expect("definite");
    assert_eq!(plain.order, [3, 2, 1, 0]);
    assert_eq!(plain.errors, [0.0, 1.0, 2.0, 6.0, 10.0]);
    let weighed = eliminate_units(&gram, down.as_ref(), Some(&metric), &options(1e-4)).expect("definite");
    assert_eq!(weighed.order, [1, 0, 3, 2]);
    assert_eq!(weighed.errors, [0.0, 0.0, 0.0, 1.0, 2.0]);
}

/// Largest relative difference of a cost from that of a fresh factorisation when `n_left` units are left.
fn drift(gram: &Gram, relative_ridge: f64, n_left: usize) -> f64 {
    let (energy, down) = (gram.diagonal(), random_down(gram.dim(), 8));
    let problem = Problem { gram, energy: &energy, down: down.as_ref(), metric: None };
    let ridge = relative_ridge * gram.mean_diagonal();
    let alive = (0..gram.dim()).filter(|&unit| energy[unit] > 0.0).collect();
    let mut updated = Remaining::all(problem, alive, ridge).expect("a ridge");
    while updated.units().len() > n_left {
        updated.remove_block(8.min(updated.units().len() - n_left)).expect("costs");
    }
    let mut left = updated.units().to_vec();
    left.sort_unstable();
    let fresh = Remaining::all(problem, left, ridge).expect("a ridge");
    let expected = |unit| fresh.costs().find(|&(other, _)| other == unit).expect("the same units").1;
    updated.costs().map(|(unit, cost)| (cost / expected(unit) - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn updates_do_not_drift_from_a_fresh_factorisation() {
    let gram = gram_of(relu_rows(300, 250, 7).as_ref()); // fewer rows than units
    for n_left in [250, 100, 30, 1] {
        let drift = drift(&gram, 1e-4, n_left);
        assert!(drift <= 1e-10, "{drift:e} with {n_left} left");
    }
}

#[test]
fn costs_keep_their_digits_when_a_null_space_is_gone() {
    // `P` falls from 1e10 to about 1 for all units as the 71st goes; half of all digits are what is asked for.
    let gram = gram_of((correlated_rows(30, 200, 28) * Random::new(29).matrix(30, 100)).as_ref());
    let drift = drift(&gram, 1e-10, 20);
    assert!(drift <= 1e-7, "{drift:e}");
}

#[test]
fn dead_units_go_first_and_cost_nothing() {
    let mut hidden = relu_rows(9, 40, 9);
    for dead in [2, 5] {
        hidden.col_mut(dead).fill(0.0);
    }
    let gram = gram_of(hidden.as_ref());
    for keep_at_least in [0, 3, 8] {
        let options = EliminationOptions { keep_at_least, ..options(1e-4) };
        let elimination = eliminate_units(&gram, random_down(9, 10).as_ref(), None, &options).expect("a ridge");
        assert_lawful(&elimination, 9, keep_at_least);
        let n_dead = elimination.order.len().min(2);
        assert_eq!(elimination.order[..n_dead], [5, 2][..n_dead]);
        assert!(elimination.errors[n_dead] <= 0.0 && elimination.errors[n_dead + 1..].iter().all(|error| *error > 0.0));
    }
}

#[test]
fn one_of_two_identical_units_goes_for_almost_nothing() {
    let mut hidden = correlated_rows(12, 60, 11);
    let copy = hidden.col(3).to_owned();
    hidden.col_mut(8).copy_from(&copy);
    let elimination = eliminate_units(&gram_of(hidden.as_ref()), random_down(12, 12).as_ref(), None, &options(1e-4))
        .expect("a ridge");
    assert!([3, 8].contains(&elimination.order[0]));
    assert!(elimination.error(11) <= 1e-9 * elimination.error(0));
    assert!(elimination.error(10) > 1e-3 * elimination.error(0));
}

#[test]
fn pairs_of_identical_units_leave_one_of_each_even_without_a_ridge() {
    let n_pairs = 40;
    let single = correlated_rows(n_pairs, 200, 13);
    let gram = gram_of(Mat::from_fn(200, 2 * n_pairs, |t, j| single[(t, j / 2)]).as_ref());
    let down = random_down(2 * n_pairs, 14);
    for relative_ridge in [0.0, 1e-12, 1e-8, 1e-4] {
        for block in [1, 7, 32] {
            let options = EliminationOptions { block, ..options(relative_ridge) };
            let elimination = eliminate_units(&gram, down.as_ref(), None, &options).expect("jitter suffices");
            assert_lawful(&elimination, 2 * n_pairs, 0);
            let pairs: Vec<usize> = elimination.kept(n_pairs).iter().map(|unit| unit / 2).collect();
            assert_eq!(pairs, (0..n_pairs).collect::<Vec<_>>(), "ridge {relative_ridge}, block {block}");
            assert!(elimination.error(n_pairs) <= 1e-6 * elimination.error(0));
        }
    }
}

#[test]
fn gram_of_low_rank_keeps_as_many_as_its_rank_for_nothing() {
    for (dim, rank) in [(20, 1), (65, 1), (65, 10)] {
        let hidden = correlated_rows(rank, 100, 15) * Random::new(16).matrix(rank, dim);
        let gram = gram_of(hidden.as_ref());
        for relative_ridge in [0.0, 1e-8, 1e-4] {
            let elimination =
                eliminate_units(&gram, random_down(dim, 17).as_ref(), None, &options(relative_ridge)).expect("jitter");
            assert_lawful(&elimination, dim, 0);
            assert!(elimination.error(rank) <= 1e-6 * elimination.error(0), "{dim} {rank} {relative_ridge}");
            assert!(elimination.error(rank - 1) >= 1e-4 * elimination.error(0), "{dim} {rank} {relative_ridge}");
        }
    }
}

#[test]
fn nothing_to_choose_by_goes_by_energy_then_index() {
    let gram = Gram::from_packed_lower(4, vec![2.0, 0.0, 1.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 1.0]).expect("10");
    for down in [Mat::zeros(4, 3), Mat::zeros(4, 0)] {
        let elimination = eliminate_units(&gram, down.as_ref(), None, &options(1e-4)).expect("definite");
        assert_eq!(elimination.order, [3, 1, 0, 2]);
        assert_eq!(elimination.errors, [0.0; 5]);
    }
    let nothing = eliminate_units(&Gram::zeros(3), random_down(3, 18).as_ref(), None, &options(1e-4)).expect("zeros");
    assert_eq!((nothing.order, nothing.errors), (vec![2, 1, 0], vec![0.0; 4]));
    let empty = eliminate_units(&Gram::zeros(0), Mat::zeros(0, 3).as_ref(), None, &options(1e-4)).expect("empty");
    assert_lawful(&empty, 0, 0);
}

#[test]
fn keeping_more_is_a_prefix_of_keeping_less() {
    let gram = random_gram(33, 80, 19);
    let down = random_down(33, 20);
    let all = eliminate_units(&gram, down.as_ref(), None, &options(1e-4)).expect("definite");
    for keep_at_least in [0, 1, 20, 33] {
        let options = EliminationOptions { keep_at_least, ..options(1e-4) };
        let some = eliminate_units(&gram, down.as_ref(), None, &options).expect("definite");
        assert_eq!(some.order, all.order[..33 - keep_at_least]);
        assert_eq!(some.kept(33), (0..33).collect::<Vec<_>>());
        assert_near(some.error(keep_at_least), all.error(keep_at_least), 1e-9);
        assert_lawful(&some, 33, keep_at_least);
    }
}

#[test]
fn condition_is_that_of_the_first_factorisation() {
    let gram = random_gram(33, 80, 21);
    let elimination = eliminate_units(&gram, random_down(33, 22).as_ref(), None, &options(0.0)).expect("definite");
    let expected = factorise(gram.to_mat().as_ref(), 0.0).expect("definite").condition_estimate();
    assert_near(elimination.condition, expected, 1e-9);
}

#[test]
fn bad_input_is_refused() {
    let gram = random_gram(3, 9, 23);
    let down = random_down(3, 24);
    let eliminate = |gram: &Gram, down: &Mat<f64>, metric: Option<&Gram>, options: EliminationOptions| {
        eliminate_units(gram, down.as_ref(), metric, &options).expect_err("bad input")
    };
    let short = eliminate(&gram, &random_down(2, 24), None, options(0.0));
    assert_eq!(short, Error::Shape { matrix: "down", expected: (3, D_MODEL), found: (2, D_MODEL) });
    let metric = eliminate(&gram, &down, Some(&gram), options(0.0));
    assert_eq!(metric, Error::Shape { matrix: "metric", expected: (D_MODEL, D_MODEL), found: (3, 3) });
    for ridge in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(eliminate(&gram, &down, None, options(ridge)), Error::Ridge { .. }));
        // Also where nothing is left to factorise.
        assert!(matches!(eliminate(&Gram::zeros(3), &down, None, options(ridge)), Error::Ridge { .. }));
    }
    let rank = eliminate(&gram, &down, None, EliminationOptions { keep_at_least: 4, ..options(0.0) });
    assert_eq!(rank, Error::Rank { rank: 4, largest: 3 });
    let mut with_nan = down.clone();
    with_nan[(1, 2)] = f64::NAN;
    assert!(matches!(eliminate(&gram, &with_nan, None, options(0.0)), Error::NotFinite { matrix: "down", .. }));
    let huge = Mat::from_fn(3, D_MODEL, |_, _| 1e200);
    assert!(matches!(eliminate(&gram, &huge, None, options(1e-4)), Error::NotFinite { matrix: "cost", .. }));
}

#[test]
fn dead_unit_with_company_is_no_gram() {
    for (energy, company) in [(0.0, 1.0), (-1.0, 0.0)] {
        let gram = Gram::from_packed_lower(2, vec![1.0, company, energy]).expect("3");
        let error = eliminate_units(&gram, random_down(2, 25).as_ref(), None, &options(1e-4)).expect_err("indefinite");
        assert_eq!(error, Error::NotPositiveDefinite { pivot: 1, value: energy, dim: 2 });
    }
}

#[test]
#[should_panic(expected = "2 units cannot be kept by an elimination that covers 3..=4")]
fn rank_that_was_not_reached_panics() {
    let options = EliminationOptions { keep_at_least: 3, ..options(1e-4) };
    let elimination = eliminate_units(&random_gram(4, 9, 26), random_down(4, 27).as_ref(), None, &options);
    elimination.expect("definite").error(2);
}
