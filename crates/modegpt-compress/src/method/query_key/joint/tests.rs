use super::*;
use crate::testing::{Random, TinyModel, forward, gram_of, layer, statistics};

/// With the plain Gram matrix of the keys as metric the error is that of all logits, and less than that of CR.
#[test]
fn logits_of_the_compressed_maps_make_the_reported_error() {
    for model in [TinyModel::opt(), TinyModel { biases: true, ..TinyModel::default() }] {
        let (config, weights) = (model.config(), model.weights(3));
        let x = Random::new(4).mat(60, model.d_model);
        let mut seen = statistics(&config, &weights, x.as_ref());
        let key = forward(&weights.key, x.as_ref(), true);
        let group = config.group_size();
        // Every head of a group sees the same keys; their metrics are added up.
        let of_head = |head: usize| {
            gram_of((key.subcols(head / group * 8, 8) * faer::Scale((group as f64).sqrt().recip())).as_ref())
        };
        seen.logit = (0..config.n_heads).map(of_head).collect();
        seen.logit_queries = 60;
        let whole = layer(0, &config, &weights, &seen);
        let mut last = f64::INFINITY;
        for d_qk in [1, 3, 5, 7] {
            let small = compress(&whole, d_qk).expect("fine");
            let rows = |linear: &Linear| forward(linear, x.as_ref(), true);
            let (query, small_query, small_key) = (rows(&weights.query), rows(&small.query), rows(&small.key));
            let (mut error, mut energy) = (0.0, 0.0);
            for head in 0..config.n_heads {
                let kv = head / group;
                let exact = query.subcols(head * 8, 8) * key.subcols(kv * 8, 8).transpose();
                let found = small_query.subcols(head * d_qk, d_qk) * small_key.subcols(kv * d_qk, d_qk).transpose();
                error += (&exact - found).squared_norm_l2();
                energy += exact.squared_norm_l2();
            }
            let reported = small.report.relative_error;
            assert!((reported - error / energy).abs() < 1e-5, "{reported} instead of {}", error / energy);
            assert!(reported < last);
            last = reported;
            let curve = errors(&whole, &[d_qk, 8]).expect("fine");
            let cr = errors_by_score(&whole, &[d_qk, 8], QueryKeyMethod::Cr).expect("fine");
            assert!(curve[0] < cr[0] && curve[1] == 0.0 && cr[1] == 0.0, "{curve:?} {cr:?}");
            let direct = error / 60.0 / 60.0 / seen.residual_energy();
            // Where little is lost, the curve tells what the maps do; where much is lost, more.
            let close = reported > 0.01 || (curve[0] - direct).abs() < 1e-3 * direct;
            assert!(close && curve[0] >= direct * (1.0 - 1e-4), "{} instead of {direct}", curve[0]);
        }
    }
}
