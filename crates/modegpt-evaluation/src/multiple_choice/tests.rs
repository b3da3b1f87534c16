use super::*;
use crate::testing::{CONTEXT, TinyModel, devices, ids, likeliest, log_probabilities};

/// Logits of the tiny model are of order 4, and a text has up to 20 scored tokens.
const TOLERANCE: f64 = 1e-4;

/// Texts of awkward lengths, from the shortest to the longest that can be read, and how many tokens of each are given.
fn texts() -> Vec<(Vec<u32>, usize)> {
    let lengths = [(2, 1), (CONTEXT + 1, 30), (7, 1), (13, 12), (8, 3), (31, 11), (7, 6), (13, 2), (CONTEXT, 39)];
    lengths.iter().enumerate().map(|(idx, (n, n_context))| (ids(idx as u64, *n), *n_context)).collect()
}

fn score(model: &TinyModel, texts: &[(Vec<u32>, usize)], batch_tokens: usize, stream_bytes: usize) -> Vec<Likelihood> {
    score_on(&Compute::host(), model, texts, ContinuationOptions { batch_tokens, stream_bytes })
}

fn score_on(
    compute: &Compute,
    model: &TinyModel,
    texts: &[(Vec<u32>, usize)],
    options: ContinuationOptions,
) -> Vec<Likelihood> {
    let texts: Vec<Continuation<'_>> =
        texts.iter().map(|(ids, n_context)| Continuation { ids, n_context: *n_context }).collect();
    let mut shares = vec![0.0];
    let told = |share| shares.push(share);
    let likelihoods = pollster::block_on(score_continuations(model, &texts, options, compute, told)).expect("finite");
    assert!(shares.is_sorted() && shares.last().is_some_and(|last| texts.is_empty() || (last - 1.0).abs() < 1e-9));
    likelihoods
}

/// Each text by itself, without padding, all of the vocabulary at once.
fn plain(model: &TinyModel, (ids, n_context): &(Vec<u32>, usize)) -> Likelihood {
    let rows = log_probabilities(model, &ids[..ids.len() - 1]);
    let scored = (*n_context..ids.len()).map(|t| (&rows[t - 1], ids[t] as usize));
    Likelihood {
        log_likelihood: scored.clone().map(|(row, id)| row[id]).sum(),
        is_greedy: scored.clone().all(|(row, id)| likeliest(row) == id),
    }
}

#[track_caller]
fn assert_close(found: &[Likelihood], expected: &[Likelihood]) {
    assert_eq!(found.len(), expected.len());
    for (idx, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found.log_likelihood - expected.log_likelihood).abs();
        assert!(difference <= TOLERANCE, "text {idx}: {found:?}, not {expected:?}");
        assert_eq!(found.is_greedy, expected.is_greedy, "text {idx}");
    }
}

#[test]
fn texts_scored_together_are_as_each_by_itself() {
    let model = TinyModel::new(1);
    let texts = texts();
    let expected: Vec<Likelihood> = texts.iter().map(|text| plain(&model, text)).collect();
    // One at a time, some together, all together; every batch a group of its own, and all in one.
    for batch_tokens in [1, 30, 64, 10_000] {
        for stream_bytes in [1, 5_000, 1 << 20] {
            for compute in devices() {
                let options = ContinuationOptions { batch_tokens, stream_bytes };
                assert_close(&score_on(&compute, &model, &texts, options), &expected);
            }
        }
    }
}

#[test]
fn the_order_of_texts_changes_nothing() {
    let model = TinyModel::new(2);
    let texts = texts();
    let found = score(&model, &texts, 64, 1 << 20);
    let reversed: Vec<_> = texts.iter().rev().cloned().collect();
    let mut back = score(&model, &reversed, 64, 1 << 20);
    back.reverse();
    assert_close(&back, &found);
}

#[test]
fn a_greedy_continuation_is_told() {
    let model = TinyModel::new(3);
    let mut text = ids(9, 5);
    for _ in 0..6 {
        let rows = log_probabilities(&model, &text);
        text.push(likeliest(&rows[text.len() - 1]) as u32);
    }
    let mut other = text.clone();
    other[10] = (other[10] + 1) % 50;
    let found = score(&model, &[(text.clone(), 5), (other, 5), (text, 4)], 64, 1 << 20);
    assert!(found[0].is_greedy);
    assert!(!found[1].is_greedy);
    assert!(found[0].log_likelihood > found[1].log_likelihood);
    assert!(found[2].log_likelihood < found[0].log_likelihood);
}

#[test]
fn nothing_to_score_is_no_work() {
    assert_eq!(score(&TinyModel::new(4), &[], 64, 1 << 20), []);
}

#[test]
fn too_long_a_text_is_an_error() {
    let ids = ids(0, CONTEXT + 2);
    let text = Continuation { ids: &ids, n_context: 1 };
    let options = ContinuationOptions { batch_tokens: 64, stream_bytes: 1 << 20 };
    let model = TinyModel::new(5);
    let found = pollster::block_on(score_continuations(&model, &[text], options, &Compute::host(), |_| {}));
    assert!(matches!(found, Err(ComputeError::TooLong { found: 41, most: CONTEXT })));
}
