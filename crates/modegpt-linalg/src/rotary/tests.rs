use super::*;
use crate::reference;
use crate::testing::{Random, assert_close, assert_near, column, gram_of};

const PAIRS: [usize; 5] = [1, 2, 3, 7, 17];

/// Products of queries and keys, `[n_rows, n_pairs]` each of real and imaginary parts, correlated as logits are.
fn products(n_pairs: usize, n_rows: usize, seed: u64) -> (Mat<f64>, Mat<f64>) {
    let mut random = Random::new(seed);
    let mixing = random.matrix(2 * n_pairs, 2 * n_pairs);
    let rows = random.matrix(n_rows, 2 * n_pairs) * mixing;
    (rows.get(.., ..n_pairs).to_owned(), rows.get(.., n_pairs..).to_owned())
}

fn features((real, imaginary): &(Mat<f64>, Mat<f64>)) -> Mat<f64> {
    let n_pairs = real.ncols();
    let entry = |t, i| if i < n_pairs { real[(t, i)] } else { -imaginary[(t, i - n_pairs)] };
    Mat::from_fn(real.nrows(), 2 * n_pairs, entry)
}

fn head(n_pairs: usize, seed: u64) -> Gram {
    gram_of(features(&products(n_pairs, 6 * n_pairs + 5, seed)).as_ref())
}

fn group(n_pairs: usize, n_heads: u64) -> Vec<Gram> {
    (0..n_heads).map(|j| head(n_pairs, 10 + j)).collect()
}

fn eliminate(grams: &[Gram], relative_ridge: f64) -> PairElimination {
    eliminate_pairs(&grams.iter().collect::<Vec<_>>(), relative_ridge).expect("definite")
}

#[test]
fn gains_are_the_least_squares_solution_and_their_error_the_direct_one() {
    for n_pairs in PAIRS {
        let (real, imaginary) = products(n_pairs, 6 * n_pairs + 5, 1);
        let features = features(&(real.clone(), imaginary.clone()));
        let gram = gram_of(features.as_ref());
        let kept: Vec<usize> = (0..n_pairs).step_by(2).collect();
        for relative_ridge in [0.0, 1e-3, 10.0] {
            let gains = refit_gains(&gram, &kept, relative_ridge).expect("definite");
            // The logits, by complex arithmetic and without the features.
            let mut direct = 0.0;
            for t in 0..real.nrows() {
                let dense: f64 = (0..n_pairs).map(|p| real[(t, p)]).sum();
                let refitted =
                    |(i, &p): (usize, &usize)| gains.real[i] * real[(t, p)] - gains.imaginary[i] * imaginary[(t, p)];
                direct += (dense - kept.iter().enumerate().map(refitted).sum::<f64>()).powi(2);
            }
            assert!((gains.error - direct).abs() <= 1e-10 * direct.max(1e-10));
        }
        let gains = refit_gains(&gram, &kept, 0.0).expect("definite");
        let expected = reference::rotary_gains(gram.to_mat().as_ref(), &kept).expect("converges");
        let found: Vec<f64> = gains.real.into_iter().chain(gains.imaginary).collect();
        assert_close(column(&found).as_ref(), column(&expected).as_ref(), 1e-8);
    }
}

#[test]
fn gain_on_the_query_gives_the_refitted_logit_under_any_rotation() {
    let mut random = Random::new(2);
    let [a, b, x, y, u, v] = [(); 6].map(|()| random.normal());
    for angle in [0.0, 0.3, 2.0] {
        let rotate =
            |x: f64, y: f64, angle: f64| (x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos());
        let logit = |(x, y): (f64, f64)| {
            let ((x, y), (u, v)) = (rotate(x, y, angle), rotate(u, v, 5.0 * angle));
            (x * u + y * v, y * u - x * v) // Re z, Im z of z = q conj(k)
        };
        let (re, im) = logit((x, y));
        let (with_gain, _) = logit((a * x - b * y, b * x + a * y));
        assert_near(with_gain, a * re - b * im, 1e-12);
    }
}

#[test]
fn order_is_that_of_brute_force() {
    for (n_pairs, n_heads) in [(1, 1), (2, 1), (3, 3), (7, 1), (7, 3)] {
        let grams = group(n_pairs, n_heads);
        let dense: Vec<Mat<f64>> = grams.iter().map(Gram::to_mat).collect();
        let expected = reference::eliminate_pairs(&dense).expect("converges");
        assert_eq!(eliminate(&grams, 0.0).order, expected, "{n_pairs} pairs, {n_heads} heads");
    }
}

#[test]
fn errors_are_those_of_the_refit_at_every_number_of_pairs() {
    for n_pairs in PAIRS {
        let grams = group(n_pairs, 3);
        for relative_ridge in [0.0, 1e-4, 1e-1] {
            let elimination = eliminate(&grams, relative_ridge);
            assert_eq!(elimination.errors.len(), n_pairs + 1);
            for (k, &error) in elimination.errors.iter().enumerate().take(n_pairs) {
                let refit = |gram| refit_gains(gram, &elimination.kept(k), relative_ridge).expect("definite").error;
                assert_near(error, grams.iter().map(refit).sum(), 1e-12);
            }
            assert_eq!((elimination.errors[n_pairs], elimination.errors[0]), (0.0, elimination.energy));
        }
    }
}

#[test]
fn error_falls_with_every_pair_and_removal_costs_what_was_priced() {
    let grams = group(17, 2);
    let elimination = eliminate(&grams, 0.0);
    assert!(elimination.errors.is_sorted_by(|fewer, more| more < fewer), "{:?}", elimination.errors);
    for k in 1..=17 {
        let kept = elimination.kept(k);
        let position = kept.binary_search(&elimination.order[17 - k]).expect("the next to go is still there");
        let price = |gram| Head::new(gram, 0.0).and_then(|head| head.fit(&kept)).expect("definite").removal_costs();
        let cost: f64 = grams.iter().map(|gram| price(gram)[position]).sum();
        assert_near(elimination.errors[k - 1], elimination.errors[k] + cost, 1e-9);
    }
}

#[test]
fn refit_beats_keeping_the_pairs_as_they_are() {
    let grams = group(7, 2);
    let elimination = eliminate(&grams, 1e-6);
    let unrefitted = |gram: &Gram, dropped: &[usize]| -> f64 {
        dropped.iter().flat_map(|&p| dropped.iter().map(move |&q| gram.get(p, q))).sum()
    };
    for k in 1..7 {
        let dropped = &elimination.order[..7 - k];
        assert!(elimination.errors[k] < grams.iter().map(|gram| unrefitted(gram, dropped)).sum());
    }
}

#[test]
fn uncorrelated_pairs_keep_gains_of_one() {
    let energies = [5.0, 2.0, 9.0, 3.0, 1.0, 1.0, 1.0, 1.0];
    let packed = (0..8).flat_map(|i| (0..=i).map(move |j| if i == j { energies[i] } else { 0.0 })).collect();
    let gram = Gram::from_packed_lower(8, packed).expect("36");
    assert_eq!(eliminate(std::slice::from_ref(&gram), 0.0).order, [1, 3, 0, 2]);
    let gains = refit_gains(&gram, &[0, 2], 0.0).expect("definite");
    assert_eq!((gains.real, gains.imaginary, gains.error), (vec![1.0; 2], vec![0.0; 2], 5.0));
}

#[test]
fn large_ridge_holds_gains_at_one() {
    let gram = head(7, 3);
    let distance = |relative_ridge| {
        let gains = refit_gains(&gram, &[1, 4, 6], relative_ridge).expect("definite");
        gains.real.iter().map(|a| (a - 1.0).powi(2)).chain(gains.imaginary.iter().map(|b| b * b)).sum::<f64>()
    };
    let distances: Vec<f64> = [0.0, 1e-2, 1.0, 1e2, 1e9].map(distance).into();
    assert!(distances.is_sorted_by(|less, more| less > more) && distances[4] < 1e-12, "{distances:?}");
}

#[test]
fn head_of_which_nothing_was_seen_costs_nothing_and_has_no_say() {
    for relative_ridge in [0.0, 1e-4] {
        let silent = eliminate(&[Gram::zeros(6)], relative_ridge);
        assert_eq!((silent.order, silent.errors), (vec![2, 1, 0], vec![0.0; 4]));
        let gains = refit_gains(&Gram::zeros(6), &[0, 2], relative_ridge).expect("nothing to solve");
        assert_eq!((gains.real, gains.imaginary, gains.error), (vec![1.0; 2], vec![0.0; 2], 0.0));
        let (one, both) = (head(3, 4), [head(3, 4), Gram::zeros(6)]);
        assert_eq!(eliminate(&both, relative_ridge), eliminate(&[one], relative_ridge));
    }
}

#[test]
fn unseen_pairs_go_first_and_singular_grams_are_fitted() {
    // Five rows for fourteen features, and pair 3 never attended.
    let (mut real, mut imaginary) = products(7, 5, 5);
    real.col_mut(3).fill(0.0);
    imaginary.col_mut(3).fill(0.0);
    let gram = gram_of(features(&(real, imaginary)).as_ref());
    for relative_ridge in [0.0, 1e-8] {
        let elimination = eliminate(std::slice::from_ref(&gram), relative_ridge);
        assert!(elimination.errors.iter().all(|error| error.is_finite()));
        assert_near(elimination.errors[0], elimination.energy, 0.0);
        // Three pairs are six features, more than the rows ask for.
        assert!(elimination.errors[3] <= 1e-8 * elimination.energy, "{:?}", elimination.errors);
        assert!(elimination.order[..4].contains(&3));
        assert_eq!(elimination.jitter.attempts > 0, relative_ridge == 0.0);
        let gains = refit_gains(&gram, &[0, 3], relative_ridge).expect("fitted");
        assert_eq!((gains.real[1], gains.imaginary[1]), (1.0, 0.0));
        let unseen = refit_gains(&gram, &[3], relative_ridge).expect("nothing to solve");
        assert_eq!((unseen.real[0], unseen.imaginary[0]), (1.0, 0.0));
        assert_near(unseen.error, elimination.energy, 1e-12);
    }
}

#[test]
fn bad_input_is_refused() {
    let gram = head(3, 6);
    for ridge in [-1.0, f64::NAN] {
        assert!(matches!(eliminate_pairs(&[&gram], ridge), Err(Error::Ridge { .. })));
    }
    let error = eliminate_pairs(&[&gram, &head(2, 7)], 0.0).expect_err("another width");
    assert_eq!(error, Error::Shape { matrix: "grams", expected: (6, 6), found: (4, 4) });
    let error = refit_gains(&gram, &[1, 3], 0.0).expect_err("no such pair");
    assert_eq!(error, Error::Kept { index: 3, position: 1, dim: 3 });
    let with_nan = Gram::from_packed_lower(2, vec![1.0, f64::NAN, 1.0]).expect("3");
    assert!(matches!(refit_gains(&with_nan, &[0], 0.0), Err(Error::NotFinite { row: 1, column: 0, .. })));
    for packed in [vec![1.0, 9.0, 1.0], vec![0.0, 1.0, 0.0]] {
        let indefinite = Gram::from_packed_lower(2, packed).expect("3");
        assert!(matches!(eliminate_pairs(&[&indefinite], 0.0), Err(Error::NotPositiveDefinite { .. })));
    }
}

#[test]
fn no_pairs_are_no_special_case() {
    let elimination = eliminate(&[Gram::zeros(0)], 1e-4);
    assert_eq!((elimination.order, elimination.errors), (vec![], vec![0.0]));
}

#[test]
#[should_panic(expected = "pairs need an even width, found 3")]
fn odd_width_has_no_pairs() {
    refit_gains(&Gram::zeros(3), &[], 0.0).ok();
}
