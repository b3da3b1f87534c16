use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use modegpt_model::{Block, Embedder};

use super::*;
use crate::score_windows;
use crate::testing::{TinyModel, VOCAB, devices, ids, likeliest, log_probabilities};

const SEQ_LEN: usize = 17;

fn windows(ids: &[u32]) -> Vec<Window<'_>> {
    let first_targets = [1, 5, 16, 1];
    ids.chunks_exact(SEQ_LEN).zip(first_targets).map(|(ids, first_target)| Window { ids, first_target }).collect()
}

fn compare(compute: &Compute, reference: &TinyModel, other: &TinyModel, stream_bytes: usize) -> Divergence {
    compare_with(None, compute, reference, other, stream_bytes)
}

fn compare_with(
    kept: Option<&dyn KeptStreams>,
    compute: &Compute,
    reference: &TinyModel,
    other: &TinyModel,
    stream_bytes: usize,
) -> Divergence {
    let ids = ids(7, 4 * SEQ_LEN);
    let options = ScoringOptions { batch: 2, stream_bytes };
    let mut shares = vec![0.0];
    let told = |share| shares.push(share);
    let all = windows(&ids);
    let found = compare_windows(reference, other, &all, options, kept, compute, told);
    let found = pollster::block_on(found).expect("finite");
    assert!(shares.is_sorted() && shares.last().is_some_and(|last| (last - 1.0).abs() < 1e-9));
    found
}

/// `Σ KL` and the number of equal choices, by definition.
fn plain(reference: &TinyModel, other: &TinyModel) -> (f64, u64) {
    let ids = ids(7, 4 * SEQ_LEN);
    let (mut kl_sum, mut n_agree) = (0.0, 0);
    for window in windows(&ids) {
        let (p, q) = (log_probabilities(reference, window.ids), log_probabilities(other, window.ids));
        for t in window.first_target - 1..SEQ_LEN - 1 {
            kl_sum += (0..VOCAB).map(|v| p[t][v].exp() * (p[t][v] - q[t][v])).sum::<f64>();
            n_agree += u64::from(likeliest(&p[t]) == likeliest(&q[t]));
        }
    }
    (kl_sum, n_agree)
}

#[test]
fn divergence_is_what_its_definition_says() {
    for (reference, other) in [(1, 2), (2, 1), (3, 4)] {
        let (reference, other) = (TinyModel::new(reference), TinyModel::new(other));
        let (kl_sum, n_agree) = plain(&reference, &other);
        for compute in devices() {
            for stream_bytes in [1, 1 << 20] {
                let found = compare(&compute, &reference, &other, stream_bytes);
                assert_eq!(found.other.n_tokens, 16 + 12 + 1 + 16);
                // Single terms are of order 10, rounded to f32.
                assert!((found.kl_sum - kl_sum).abs() < 1e-4, "{} is not {kl_sum}", found.kl_sum);
                assert_eq!(found.n_agree, n_agree);
                assert!(found.kl_divergence() > 0.1 && found.top1_agreement() < 0.9);
            }
        }
    }
}

/// The residual stream behind each layer.
fn streams(model: &TinyModel, ids: &[u32]) -> Vec<Vec<f64>> {
    let (compute, config) = (Compute::host(), model.config());
    let embedder = Embedder::new(model, &compute).expect("weights");
    let mut x = embedder.embed(model, ids, 1, 0, &compute).expect("known ids");
    let behind = config.layers.iter().enumerate().map(|(index, shape)| {
        x = Block::new(model.layer(index).expect("weights"), shape, config, &compute).forward(x.clone());
        let values = pollster::block_on(compute.read(x.clone())).expect("finite");
        values.into_iter().map(f64::from).collect()
    });
    behind.collect()
}

#[test]
fn errors_of_the_stream_are_those_behind_each_layer() {
    let (reference, other) = (TinyModel::new(1), TinyModel::new(2));
    let ids = ids(7, 4 * SEQ_LEN);
    let mut plain = [StreamError::default(); 2];
    for window in windows(&ids) {
        let (x, y) = (streams(&reference, window.ids), streams(&other, window.ids));
        for (layer, sums) in plain.iter_mut().enumerate() {
            sums.error_sum += x[layer].iter().zip(&y[layer]).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
            sums.energy_sum += x[layer].iter().map(|x| x.powi(2)).sum::<f64>();
        }
    }
    for stream_bytes in [1, 1 << 20] {
        let found = compare(&Compute::host(), &reference, &other, stream_bytes).layers;
        assert_eq!(found.len(), 2);
        for (found, plain) in found.iter().zip(&plain) {
            assert!((found.relative() / plain.relative() - 1.0).abs() < 1e-5, "{found:?} is not {plain:?}");
        }
        assert!(found[1].relative() > 0.1);
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let model = TinyModel::new(5);
    for compute in devices() {
        let found = compare(&compute, &model, &model, 1 << 20);
        assert_eq!((found.kl_divergence(), found.top1_agreement()), (0.0, 1.0));
        assert_eq!(found.reference, found.other);
        assert!(found.layers.iter().all(|layer| layer.relative() == 0.0 && layer.energy_sum > 0.0));
    }
}

#[test]
fn losses_are_those_of_each_model_by_itself() {
    let models = [TinyModel::new(6), TinyModel::new(7)];
    let ids = ids(7, 4 * SEQ_LEN);
    let options = ScoringOptions { batch: 2, stream_bytes: 1 << 20 };
    let found = compare(&Compute::host(), &models[0], &models[1], 1 << 20);
    for (model, found) in models.iter().zip([found.reference, found.other]) {
        let (windows, compute) = (windows(&ids), Compute::host());
        let alone = pollster::block_on(score_windows(model, &windows, options, &compute, |_| {})).expect("finite");
        assert_eq!((found.n_tokens, found.n_top), (alone.n_tokens, alone.n_top));
        assert!((found.nll_sum - alone.nll_sum).abs() < 1e-5, "{} is not {}", found.nll_sum, alone.nll_sum);
    }
}

/// Streams in memory, in as many places as there is room for.
struct Places {
    room: usize,
    kept: RefCell<BTreeMap<(usize, usize), Vec<f32>>>,
    n_loaded: Cell<usize>,
}

impl KeptStreams for Places {
    fn load(&self, group: usize, layer: usize, n_elements: usize) -> Result<Option<Vec<f32>>, StoreError> {
        let stream = self.kept.borrow().get(&(group, layer)).cloned();
        self.n_loaded.set(self.n_loaded.get() + usize::from(stream.is_some()));
        assert!(stream.iter().all(|stream| stream.len() == n_elements));
        Ok(stream)
    }

    fn keep(&self, group: usize, layer: usize, stream: &[f32]) -> Result<(), StoreError> {
        if self.kept.borrow().len() < self.room {
            self.kept.borrow_mut().insert((group, layer), stream.to_vec());
        }
        Ok(())
    }
}

#[test]
fn kept_streams_change_nothing_but_the_work() {
    let reference = TinyModel::new(1);
    let compute = Compute::host();
    for (stream_bytes, n_groups) in [(1, 4), (1 << 20, 1)] {
        for room in [0, 1, 8] {
            let kept = Places { room, kept: RefCell::default(), n_loaded: Cell::new(0) };
            for (seed, n_loaded) in [(2, 0), (3, room.min(2 * n_groups))] {
                let other = TinyModel::new(seed);
                let found = compare_with(Some(&kept), &compute, &reference, &other, stream_bytes);
                assert_eq!(found, compare(&compute, &reference, &other, stream_bytes));
                assert_eq!(kept.n_loaded.get(), n_loaded);
            }
        }
    }
}
