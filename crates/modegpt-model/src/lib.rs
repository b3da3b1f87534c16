//! The transformer in burn.
//!
//! One runtime model serves every family and every degree of compression: a [`Block`] takes its widths from its weights,
//! so a dense layer is merely one whose widths are full. Blocks are built from host weights one at a time
//! ([`Block::new`]), applied ([`Block::forward`]) and dropped; a whole model in memory is only needed to generate text
//! ([`Decoder`]).
//!
//! Activations are rows, `x: [batch, tokens, d_model]`, and weights `[d_in, d_out]`: `y = x W + b`. The softmax scale is
//! `1 / sqrt(d_head)` with the *original* head width, whatever is left of the heads.
//!
//! [`Block::observe`] returns, beside its output, the activations that calibration looks at: no hooks, only values.
//! [`Block::probe`] lets a [`Probe`] see everything, and change it on its way, as gradients need.
//!
//! All arithmetic is f32. On the host, kernels of this crate stand in for what burn computes in many passes, unless
//! gradients are recorded. On graphics cards attention is built from plain products and a softmax, since fused kernels
//! round their operands to half precision; see [`Compute`].

mod attention;
mod block;
mod cache;
mod compute;
mod decoder;
mod embedding;
mod head;
mod host;
mod linear;
mod norm;
mod probe;
mod rope;
mod stream;

pub use block::{Block, Half, Observations};
pub use cache::KvCache;
pub use compute::{Compute, ComputeError};
pub use decoder::Decoder;
pub use embedding::Embedder;
pub use head::{Head, HeadInput, PairScores, TokenScores, compare_heads};
pub use probe::{Point, Probe};
pub use stream::{ResidualStore, ResidualStream, StoreError};
