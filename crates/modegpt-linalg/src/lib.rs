//! The dense f64 mathematics of modular decomposition, on the host.
//!
//! A trained transformer block is compressed without training by replacing pairs of its matrices with smaller ones that
//! give nearly the same output on sample tokens. All that the decompositions need to know of those tokens are **Gram
//! matrices** `C = XᵀX`, which a [`GramAccumulator`] sums up in f64 from rows of f32 activations. Then
//!
//! - the **MLP** keeps the hidden units that are hardest to replace ([`ridge_leverage`], [`select_by_leverage`]) and
//!   refits its down projection so that they carry the output of the others ([`nystrom`], or [`nystrom_affine`] with the
//!   bias); better, it eliminates one at a time those whose loss costs least ([`eliminate_units`]);
//! - **queries and keys** keep the coordinates, or rotary pairs, that carry the logits ([`cr_scores`],
//!   [`rotary_pair_scores`], [`top_k`], [`cr_error`]); better, the kept pairs take over the logits of the others
//!   ([`eliminate_pairs`], [`refit_gains`]), or without rotation both are projected together ([`joint_query_key`]);
//! - **values and outputs** are projected onto the directions that carry their product ([`value_output`]);
//! - **any one weight** becomes a product of two thin ones, best in the metric of a method ([`weighted_svd`]).
//!
//! Everything is a pure function of matrices: no files, clocks, threads of its own or randomness, so that it also runs in
//! a browser. How many threads a product takes is what `faer::get_global_parallelism` says; without faer's `rayon`
//! feature it is one. The plain versions of the algorithms, which follow the paper literally, are in [`mod@reference`].
//!
//! # Conventions
//! - Weights are `[d_in, d_out]`, activations are rows, `y = x W`.
//! - Grams are sums over tokens, neither averaged nor centred. Ridges are relative to their mean diagonal, so the number
//!   of tokens does not matter.
//! - Errors are squared Frobenius norms over the tokens of the Gram, absolute.
//! - A broken caller (a slice of the wrong length) panics with a sentence; a broken input (NaN, a shape or an index that
//!   may come from a file) is an [`Error`].
//!
//! # Symbols
//!
//! | Symbol | Identifier | Shape | Means |
//! | --- | --- | --- | --- |
//! | `C`, `C_Q`, `C_K`, `G_V` | `gram`, `query_gram`, `key_gram`, `value_gram` | `[n, n]` | `XᵀX` of hidden units, queries, keys, values |
//! | `λ`, `δ` | `ridge` | – | multiple of the identity added before a solve |
//! | `s_i` | `scores` | `[n]` | large = worth keeping |
//! | `h_i` | `inverse_diagonal` | `[n]` | `[(C + λI)⁻¹]_ii` |
//! | `J`, `k` | `kept`, `k` | `[k]` | kept indices, ascending |
//! | `Γ`, `μ` | `centred_gram`, `sum / n_tokens` | `[n, n]`, `[n]` | Gram of the deviations from the mean, and the mean |
//! | `M` | `metric` | `[d_model, d_model]` | how much each direction of the output matters |
//! | `Δ_i` | `cost` | `[n]` | by how much the least error rises without unit `i` |
//! | `W`, `W'` | `down` | `[d_ff, d_model]`, `[k, d_model]` | down projection, before and after |
//! | `G_O` | `output_gram` | `[d, d]` | `Σ_j W_O,j W_O,jᵀ` over the heads that share the values |
//! | `E`, `F` | `encode`, `decode` | `[d, k]`, `[k, d]` | `W_V ← W_V E`, `W_O ← F W_O` |
//! | `A`, `B` | `query`, `key`; `a`, `b` | `[d, k]`; `[d_in, r]`, `[r, d_out]` | `W_Q ← W_Q A`, `W_K ← W_K B`; `W ≈ A B` |
//! | `f`, `F` | –, `gram` | `[2 n_pairs]`, its square | real and negated imaginary parts of rotary products, their Gram |
//! | `a_p + i b_p` | `real`, `imaginary` | `[k]` each | complex gain of a rotary pair |
//! | `P`, `Q` | `input`, `output` | `[d_in, d_in]`, `[d_out, d_out]` | how errors are weighed before and behind a weight |
//! | `Λ`, `Σ²` | `spectrum` | `[d]` | squared output carried by each direction |
//!
//! # Examples
//!
//! Half of the hidden units of a tiny MLP, of which the third is the sum of the first two and the fourth never fires:
//!
//! ```
//! use faer::mat;
//! use modegpt_linalg::{GramAccumulator, nystrom, ridge_leverage, select_by_leverage};
//!
//! let mut accumulator = GramAccumulator::new(4);
//! accumulator.add_rows(&[1.0, 0.0, 1.0, 0.0, 0.0, 2.0, 2.0, 0.0, 3.0, 1.0, 4.0, 0.0], 3);
//! let gram = accumulator.finish();
//!
//! let kept = select_by_leverage(&ridge_leverage(&gram, 1e-4)?, &gram, 2);
//! assert!(!kept.contains(&3));
//!
//! let down = mat![[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [5.0, 5.0]];
//! let refit = nystrom(&gram, &kept, down.as_ref(), 0.0)?;
//! assert!(refit.error < 1e-12); // any two of the first three units carry all of the output
//! # Ok::<(), modegpt_linalg::Error>(())
//! ```

mod accumulator;
mod affine;
mod check;
mod condition;
mod cr;
mod eliminate;
mod error;
mod gram;
mod head_grams;
mod leverage;
mod low_rank;
mod nystrom;
mod psd;
mod query_key;
pub mod reference;
mod regression;
mod rotary;
mod select;
#[cfg(test)]
mod testing;
mod value_output;
mod weighted_svd;

pub use accumulator::GramAccumulator;
pub use affine::{LEAST_VARIANCE, centred_gram, nystrom_affine};
pub use cr::{cr_error, cr_scores, rotary_pair_scores};
pub use eliminate::{Elimination, EliminationOptions, eliminate_units};
pub use error::Error;
pub use gram::Gram;
pub use head_grams::HeadGrams;
pub use leverage::{RidgeLeverage, ridge_leverage};
pub use low_rank::{TruncatedSvd, singular_values, truncated_svd};
pub use nystrom::{Nystrom, nystrom};
pub use psd::{Cholesky, Jitter, factorise};
pub use query_key::{JointQueryKey, joint_query_key};
pub use regression::{Regression, regress_towards};
pub use rotary::{Gains, PairElimination, eliminate_pairs, refit_gains};
pub use select::{select_by_leverage, top_k};
pub use value_output::{ValueOutput, value_output};
pub use weighted_svd::{Metric, WeightedSvd, weighted_svd};
