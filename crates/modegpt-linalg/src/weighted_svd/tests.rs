use super::*;
use crate::testing::{Random, SIZES, assert_close, assert_near, column, correlated_rows, gram_of, random_gram};
use crate::{reference, singular_values, truncated_svd};

fn shapes() -> impl Iterator<Item = (usize, usize)> {
    SIZES.into_iter().flat_map(|rows| SIZES.into_iter().map(move |columns| (rows, columns)))
}

/// Positive, and of very different size.
fn weights(dim: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed);
    (0..dim).map(|_| random.normal().exp()).collect()
}

/// `‖R (W - W') S‖_F²` for `RᵀR` and `S Sᵀ` the metrics, without their factors.
fn direct_error(difference: &Mat<f64>, input: &Metric<'_>, output: &Metric<'_>) -> f64 {
    let dense = |metric: &Metric<'_>, dim: usize| match metric {
        Metric::Identity => Mat::identity(dim, dim),
        Metric::Diagonal(weights) => Mat::from_fn(dim, dim, |i, j| if i == j { weights[i].powi(2) } else { 0.0 }),
        Metric::Gram(gram) => gram.to_mat(),
    };
    let (rows, columns) = difference.shape();
    let weighted = dense(input, rows) * difference * dense(output, columns);
    (0..rows).map(|i| (0..columns).map(|j| weighted[(i, j)] * difference[(i, j)]).sum::<f64>()).sum()
}

/// Calls `check` with every pair of kinds of metric.
fn for_all_metrics(rows: usize, columns: usize, check: impl Fn(&Metric<'_>, &Metric<'_>)) {
    let grams = (random_gram(rows, 2 * rows + 3, 1), random_gram(columns, 2 * columns + 3, 2));
    for input in [Metric::Identity, Metric::Diagonal(weights(rows, 3)), Metric::Gram(&grams.0)] {
        for output in [Metric::Identity, Metric::Diagonal(weights(columns, 4)), Metric::Gram(&grams.1)] {
            check(&input, &output);
        }
    }
}

#[test]
fn full_rank_is_exact() {
    for (rows, columns) in shapes() {
        let weight = Random::new(5).matrix(rows, columns);
        for_all_metrics(rows, columns, |input, output| {
            let svd = weighted_svd(weight.as_ref(), input, output, rows.min(columns)).expect("definite");
            assert_close(svd.reconstruct().as_ref(), weight.as_ref(), 1e-9);
            assert_near(svd.error, 0.0, 0.0);
            assert_eq!(svd.spectrum.len(), rows.min(columns));
        });
    }
}

#[test]
fn error_is_the_tail_the_direct_one_and_falls_with_rank() {
    for (rows, columns) in [(1, 7), (7, 7), (33, 20), (20, 33)] {
        let weight = Random::new(6).matrix(rows, columns);
        for_all_metrics(rows, columns, |input, output| {
            let mut previous = f64::INFINITY;
            for rank in 0..rows.min(columns) {
                let svd = weighted_svd(weight.as_ref(), input, output, rank).expect("definite");
                assert_near(svd.error, svd.spectrum[rank..].iter().sum(), 1e-14);
                assert_near(svd.error, direct_error(&(&weight - svd.reconstruct()), input, output), 1e-8);
                assert!(svd.error < previous);
                previous = svd.error;
            }
        });
    }
}

#[test]
fn no_other_factors_are_better() {
    let (weight, mut random) = (Random::new(7).matrix(9, 12), Random::new(8));
    for_all_metrics(9, 12, |input, output| {
        let svd = weighted_svd(weight.as_ref(), input, output, 4).expect("definite");
        let plain = truncated_svd(weight.as_ref(), 4).expect("converges").reconstruct();
        assert!(svd.error <= direct_error(&(&weight - plain), input, output) * (1.0 + 1e-12));
    });
    let gram = random_gram(9, 30, 9);
    let svd = weighted_svd(weight.as_ref(), &Metric::Gram(&gram), &Metric::Identity, 4).expect("definite");
    for _ in 0..20 {
        let a = &svd.a + random.matrix(9, 4) * faer::Scale(1e-3);
        let b = &svd.b + random.matrix(4, 12) * faer::Scale(1e-3);
        assert!(svd.error < direct_error(&(&weight - a * b), &Metric::Gram(&gram), &Metric::Identity));
    }
}

#[test]
fn product_equals_the_one_through_inverses() {
    for (rows, columns) in shapes() {
        let weight = Random::new(10).matrix(rows, columns);
        let (input, output) = (random_gram(rows, 3 * rows, 11), random_gram(columns, 3 * columns, 12));
        let rank = rows.min(columns).div_ceil(2);
        let svd = weighted_svd(weight.as_ref(), &Metric::Gram(&input), &Metric::Gram(&output), rank);
        let roots = [input, output].map(|gram| reference::symmetric_root(gram.to_mat().as_ref()).expect("a root"));
        let (a, b) =
            reference::weighted_svd(weight.as_ref(), roots[0].as_ref(), roots[1].as_ref(), rank).expect("converges");
        assert_close(svd.expect("definite").reconstruct().as_ref(), (a * b).as_ref(), 1e-8);
    }
}

#[test]
fn without_metrics_it_is_the_truncated_svd() {
    for (rows, columns) in shapes() {
        let weight = Random::new(13).matrix(rows, columns);
        let rank = rows.min(columns) / 2;
        let svd = weighted_svd(weight.as_ref(), &Metric::Identity, &Metric::Identity, rank).expect("converges");
        let expected = truncated_svd(weight.as_ref(), rank).expect("converges");
        assert_close(svd.reconstruct().as_ref(), expected.reconstruct().as_ref(), 1e-10);
        let squares: Vec<f64> = expected.singular_values.iter().map(|value| value * value).collect();
        assert_close(column(&svd.spectrum).as_ref(), column(&squares).as_ref(), 1e-12);
        for i in 0..rank {
            assert_near(svd.a.col(i).norm_l2(), expected.left.col(i).norm_l2(), 1e-10);
            assert_near(svd.b.row(i).norm_l2(), svd.a.col(i).norm_l2(), 1e-12);
        }
    }
}

#[test]
fn gram_of_the_inputs_gives_the_error_of_the_outputs() {
    let (rows, columns, rank) = (33, 20, 7);
    let inputs = correlated_rows(rows, 90, 14);
    let weight = Random::new(15).matrix(rows, columns);
    let gram = gram_of(inputs.as_ref());
    let svd = weighted_svd(weight.as_ref(), &Metric::Gram(&gram), &Metric::Identity, rank).expect("definite");
    let outputs = &inputs * &weight;
    assert_near(svd.error, (&outputs - &inputs * svd.reconstruct()).squared_norm_l2(), 1e-10);
    let optimum = singular_values(outputs.as_ref()).expect("converges");
    assert_near(svd.error, optimum[rank..].iter().map(|value| value * value).sum(), 1e-10);
}

#[test]
fn metrics_of_equal_weights_change_nothing() {
    let weight = Random::new(16).matrix(7, 9);
    let plain = weighted_svd(weight.as_ref(), &Metric::Identity, &Metric::Identity, 3).expect("converges");
    let diagonal = |dim| Metric::Diagonal(vec![2.0; dim]);
    let packed = (0..7).flat_map(|i| (0..=i).map(move |j| if i == j { 4.0 } else { 0.0 })).collect();
    let gram = Gram::from_packed_lower(7, packed).expect("28");
    for input in [diagonal(7), Metric::Gram(&gram)] {
        let svd = weighted_svd(weight.as_ref(), &input, &diagonal(9), 3).expect("definite");
        assert_close(svd.reconstruct().as_ref(), plain.reconstruct().as_ref(), 1e-12);
        assert_near(svd.error, 16.0 * plain.error, 1e-12);
    }
}

/// The example that US20230106213 works out: three rows of Fisher information, and what each row weighs.
#[test]
fn fisher_weights_are_square_roots_of_row_sums() {
    let fisher = faer::mat![[0.3, 0.8, 0.6], [0.2, 0.1, 0.2], [2.2, 5.3, 6.1]];
    let sums: Vec<f64> = fisher.row_iter().map(|row| row.sum()).collect();
    let roots: Vec<f64> = sums.iter().map(|sum| sum.sqrt()).collect();
    let tenths: Vec<f64> = roots.iter().map(|root| (root * 10.0).floor() / 10.0).collect();
    assert_eq!(tenths, [1.3, 0.7, 3.6]);

    let weight = Random::new(17).matrix(3, 3);
    let loss = |weights: &[f64]| {
        let svd = weighted_svd(weight.as_ref(), &Metric::Diagonal(weights.to_vec()), &Metric::Identity, 1);
        let difference = &weight - svd.expect("definite").reconstruct();
        (0..3).map(|i| sums[i] * difference.row(i).squared_norm_l2()).sum::<f64>()
    };
    let svd = weighted_svd(weight.as_ref(), &Metric::Diagonal(roots.clone()), &Metric::Identity, 1);
    assert_near(loss(&roots), svd.expect("definite").error, 1e-12);
    assert!(loss(&roots) < loss(&sums) && loss(&roots) < loss(&[1.0; 3]));
}

#[test]
fn features_without_weight_are_floored_and_give_way() {
    let weight = Random::new(18).matrix(6, 5);
    let mut input = vec![1.0; 6];
    [input[1], input[4]] = [0.0; 2];
    let svd = weighted_svd(weight.as_ref(), &Metric::Diagonal(input), &Metric::Identity, 4).expect("floored");
    assert_eq!(svd.input_jitter, Jitter { attempts: 1, relative: 1e-6 });
    assert_eq!(svd.output_jitter, Jitter::default());
    // Four rows count, so that rank 4 has them all but exactly; the others stay finite.
    let difference = &weight - svd.reconstruct();
    assert!([0, 2, 3, 5].iter().all(|&i| difference.row(i).norm_l2() <= 1e-5) && svd.error <= 1e-10);
    assert!(difference.norm_max() <= 10.0 * weight.norm_max());
    let output = Metric::Diagonal(vec![0.0, 1.0, 1.0, 0.0, 1.0]);
    let svd = weighted_svd(weight.as_ref(), &Metric::Identity, &output, 3).expect("floored");
    assert_eq!(svd.output_jitter.attempts, 1);
    assert!((&weight - svd.reconstruct()).get(.., 1..3).norm_max() <= 1e-5);
}

#[test]
fn fewer_tokens_than_channels_need_jitter_and_lose_nothing_at_their_rank() {
    let inputs = correlated_rows(33, 6, 19);
    let gram = gram_of(inputs.as_ref());
    let weight = Random::new(20).matrix(33, 20);
    for rank in [6, 12, 20] {
        let svd = weighted_svd(weight.as_ref(), &Metric::Gram(&gram), &Metric::Identity, rank).expect("jitter");
        assert!(svd.input_jitter.attempts > 0);
        let outputs = &inputs * &weight;
        let lost = (&outputs - &inputs * svd.reconstruct()).squared_norm_l2();
        assert!(lost <= 1e-9 * outputs.squared_norm_l2(), "{rank}: {lost:e}");
        assert!(svd.reconstruct().norm_l2() <= 2.0 * weight.norm_l2());
    }
}

#[test]
fn zero_weight_is_no_special_case() {
    for (rows, columns) in [(0, 3), (3, 0), (3, 2)] {
        let zero = Mat::<f64>::zeros(rows, columns);
        for_all_metrics(rows, columns, |input, output| {
            let rank = rows.min(columns);
            let svd = weighted_svd(zero.as_ref(), input, output, rank).expect("nothing to weigh");
            assert_eq!((svd.reconstruct(), svd.spectrum), (zero.clone(), vec![0.0; rank]));
            assert!(svd.a.is_all_finite() && svd.b.is_all_finite());
        });
    }
}

#[test]
fn bad_input_is_refused() {
    let mut weight = Random::new(21).matrix(3, 2);
    let refuse = |input: &Metric<'_>, output: &Metric<'_>| {
        weighted_svd(weight.as_ref(), input, output, 1).expect_err("bad input")
    };
    let (plain, diagonal) = (Metric::Identity, |weights: &[f64]| Metric::Diagonal(weights.to_vec()));
    let short = refuse(&diagonal(&[1.0]), &plain);
    assert_eq!(short, Error::Shape { matrix: "input", expected: (3, 1), found: (1, 1) });
    assert_eq!(refuse(&plain, &diagonal(&[0.0; 2])), Error::NoWeight { metric: "output" });
    assert_eq!(refuse(&Metric::Gram(&Gram::zeros(3)), &plain), Error::NoWeight { metric: "input" });
    let negative = refuse(&diagonal(&[1.0, -2.0, 1.0]), &plain);
    assert_eq!(negative, Error::Weight { metric: "input", index: 1, value: -2.0 });
    assert!(matches!(refuse(&plain, &diagonal(&[f64::NAN, 1.0])), Error::Weight { index: 0, .. }));
    let wide = refuse(&plain, &Metric::Gram(&Gram::zeros(3)));
    assert_eq!(wide, Error::Shape { matrix: "output", expected: (2, 2), found: (3, 3) });
    let with_nan = Gram::from_packed_lower(2, vec![1.0, f64::NAN, 1.0]).expect("3");
    let refused = refuse(&plain, &Metric::Gram(&with_nan));
    assert!(matches!(refused, Error::NotFinite { matrix: "output", row: 1, column: 0, .. }));
    let indefinite = Gram::from_packed_lower(2, vec![1.0, 9.0, 1.0]).expect("3");
    assert!(matches!(refuse(&plain, &Metric::Gram(&indefinite)), Error::NotPositiveDefinite { .. }));
    assert_eq!(weighted_svd(weight.as_ref(), &plain, &plain, 3), Err(Error::Rank { rank: 3, largest: 2 }));
    weight[(0, 1)] = f64::INFINITY;
    assert!(matches!(weighted_svd(weight.as_ref(), &plain, &plain, 1), Err(Error::NotFinite { matrix: "weight", .. })));
}
