use faer::Mat;
use modegpt_linalg::Gram;

use super::*;
use crate::testing::{Random, TinyModel, forward, gram_of, layer, statistics, tokens_of};
use crate::{Methods, Orders, WidthGrid, Widths, compress_layer, survey_layer};

/// Every logit as a row of its features, for the query head `head`: all pairs of positions.
fn features(layer: &Layer<'_>, query: &Linear, key: &Linear, x: &Mat<f64>, head: usize) -> Mat<f64> {
    let (d, half) = (layer.shape.d_qk, layer.shape.d_qk / 2);
    let frequencies = layer.config.rotary_frequencies();
    let rotated = |linear: &Linear, head: usize| {
        let rows = forward(linear, x.as_ref(), true).subcols(head * d, d).to_owned();
        Mat::from_fn(rows.nrows(), d, |t, col| {
            let (sin, cos) = (t as f64 * frequencies[col % half]).sin_cos();
            let (a, b) = (rows[(t, col % half)], rows[(t, col % half + half)]);
            if col < half { a * cos - b * sin } else { b * cos + a * sin }
        })
    };
    let (q, k) = (rotated(query, head), rotated(key, head / layer.config.group_size()));
    let n = x.nrows();
    Mat::from_fn(n * n, d, |pair, col| {
        let (t, s, p) = (pair / n, pair % n, col % half);
        if col < half {
            q[(t, p)] * k[(s, p)] + q[(t, p + half)] * k[(s, p + half)]
        } else {
            q[(t, p)] * k[(s, p + half)] - q[(t, p + half)] * k[(s, p)]
        }
    })
}

/// With the plain squared error of all logits as metric, the compressed maps make the error that was reported, and it is
/// less than that of keeping the same pairs as they are.
#[test]
fn logits_of_the_compressed_maps_make_the_reported_error() {
    for biases in [false, true] {
        let model = TinyModel { biases, ..TinyModel::llama() };
        let (config, weights) = (model.config(), model.weights(3));
        let x = Random::new(4).mat(30, model.d_model);
        let mut seen = statistics(&config, &weights, x.as_ref());
        let bare = layer(0, &config, &weights, &seen);
        let of_head = |head| features(&bare, &weights.query, &weights.key, &x, head);
        let all: Vec<Mat<f64>> = (0..config.n_heads).map(of_head).collect();
        seen.logit = all.iter().map(|rows| gram_of(rows.as_ref())).collect();
        seen.logit_queries = 30;
        let whole = layer(0, &config, &weights, &seen);
        let small = compress(&whole, 4, Ridges { gains: 1e-12, ..Ridges::default() }, None).expect("fine");
        let kept = small.rotary_pairs.clone().expect("rotary");

        let (mut error, mut unrefitted, mut energy) = (0.0, 0.0, 0.0);
        for (head, rows) in all.iter().enumerate() {
            let logit = |row: usize, pairs: &[usize]| pairs.iter().map(|&p| rows[(row, p)]).sum::<f64>();
            let (d, group) = (2, config.group_size());
            let frequencies = config.rotary_frequencies();
            let turn = |linear: &Linear, head: usize, pairs: &[usize]| {
                let y = forward(linear, x.as_ref(), true).subcols(head * 2 * d, 2 * d).to_owned();
                Mat::from_fn(y.nrows(), 2 * d, |t, col| {
                    let (sin, cos) = (t as f64 * frequencies[pairs[col % d]]).sin_cos();
                    let (a, b) = (y[(t, col % d)], y[(t, col % d + d)]);
                    if col < d { a * cos - b * sin } else { b * cos + a * sin }
                })
            };
            let pairs = &kept[head / group];
            let found = turn(&small.query, head, pairs) * turn(&small.key, head / group, pairs).transpose();
            for row in 0..rows.nrows() {
                let exact = logit(row, &[0, 1, 2, 3]);
                error += (found[(row / 30, row % 30)] - exact).powi(2);
                unrefitted += (logit(row, pairs) - exact).powi(2);
                energy += exact.powi(2);
            }
        }
        let reported = small.report.relative_error;
        assert!((reported - error / energy).abs() < 1e-5 * reported, "{reported} instead of {}", error / energy);
        assert!(error < unrefitted, "the gains help: {error} {unrefitted}");
    }
}

#[test]
fn orders_found_before_give_the_same_layer() {
    let model = TinyModel::llama();
    let (config, weights) = (model.config(), model.weights(5));
    let mut seen = statistics(&config, &weights, tokens_of(&model, 40).as_ref());
    seen.logit = (0..4).map(|head| gram_of(Random::new(head).mat(50, 8).as_ref())).collect();
    seen.logit_queries = 50;
    seen.attention_output = (0..4).map(|head| gram_of(Random::new(10 + head).mat(50, 8).as_ref())).collect();
    let whole = layer(0, &config, &weights, &seen);
    let present = Widths::from(&config.layers[0]);
    let grid = WidthGrid::new(present, true, crate::Rounding { ff: 8, head: 2, rank: 8 }, 0.9);
    let survey = survey_layer(&whole, &grid, Methods::BEST, Ridges::default()).expect("fine");
    let plan = crate::testing::plan(24, 4, 4);
    let with = |orders: &Orders| compress_layer(&whole, &plan, Methods::BEST, Ridges::default(), orders).expect("fine");
    let (known, anew) = (with(&survey.orders), with(&Orders::default()));
    assert_eq!((&known.weights, &known.shape), (&anew.weights, &anew.shape));
    for curve in [&survey.curves.d_ff, &survey.curves.d_qk, &survey.curves.d_v] {
        assert!(curve.errors.is_sorted_by(|a, b| a >= b) && curve.errors.last() == Some(&0.0), "{curve:?}");
    }
    // The curve and the report are two ways to the same errors, but for what the first order does not tell.
    let at = |curve: &crate::ErrorCurve, width: usize| {
        curve.errors[curve.widths.binary_search(&width).expect("on the grid")]
    };
    let total: f64 = seen.logit.iter().map(|gram: &Gram| logit_energy(gram)).sum();
    let reported = known.report.query_key.relative_error * total / 50.0 / seen.residual_energy();
    assert!(at(&survey.curves.d_qk, 4) >= reported, "{} {reported}", at(&survey.curves.d_qk, 4));

    let mut wrong = survey.orders.clone();
    wrong.pairs.as_mut().expect("pairs")[0][0] = 7;
    let refused = compress_layer(&whole, &plan, Methods::BEST, Ridges::default(), &wrong).expect_err("no such pair");
    assert!(refused.to_string().contains("orders of distinct pairs"), "{refused}");
}

#[test]
fn statistics_without_logits_are_refused_by_name() {
    let model = TinyModel::llama();
    let (config, weights) = (model.config(), model.weights(5));
    let seen = statistics(&config, &weights, tokens_of(&model, 10).as_ref());
    let refused = compress(&layer(3, &config, &weights, &seen), 4, Ridges::default(), None).err().expect("no metric");
    assert_eq!(
        refused.to_string(),
        "layer 3, query-key: statistic `logit` expected one for each query head, found statistics collected without it"
    );
}
