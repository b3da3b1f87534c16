//! What calibration learns of a layer, as values that can be merged, saved and read again.
//!
//! Calibration runs tokens through a model and observes each decoder block: the Gram matrices of the activations that
//! compression needs, and how much the block turns the residual stream ([`LayerStatistics::block_influence`]). All sums
//! are `f64` and not centred. Parts computed separately are joined by [`LayerStatistics::merge`] in the order of the
//! tokens, so the same parts give the same bits.
//!
//! A file holds one layer: a safetensors file with the packed lower triangles and a [`StatisticsHeader`] that says from
//! which model and which tokens they come. The same statistics always give the same bytes.
//!
//! [`LayerGradients`] are the same for a backward pass.
//!
//! ```
//! use modegpt_linalg::Gram;
//! use modegpt_statistics::{LayerStatistics, StatisticsHeader};
//!
//! let identity = |dim: usize| {
//!     let packed = (0..dim).flat_map(|row| (0..=row).map(move |col| f64::from(u8::from(row == col)))).collect();
//!     Gram::from_packed_lower(dim, packed)
//! };
//! let statistics = LayerStatistics {
//!     n_tokens: 4,
//!     influence_sum: 1.0,
//!     mlp: identity(3)?,
//!     mlp_sum: vec![0.5; 3],
//!     query: vec![identity(2)?, identity(2)?],
//!     key: vec![identity(2)?],
//!     key_sum: vec![vec![0.0; 2]],
//!     value: vec![identity(2)?],
//!     attention_output: Vec::new(),
//!     inverse_residual_sum: 2.0,
//!     logit: Vec::new(),
//!     logit_queries: 0,
//!     inputs: None,
//!     magnitudes: None,
//! };
//! let header = StatisticsHeader::new(0, "model", "tokens", 2, 2);
//! let (read, _) = LayerStatistics::from_bytes(&statistics.to_bytes(&header))?;
//! assert_eq!(read.block_influence(), 0.25);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod file;
mod gradients;
mod gradients_file;
mod prefix;
mod statistics;

pub use error::Error;
pub use file::StatisticsHeader;
pub use gradients::{LINEARS, Labels, LayerGradients, RowFisher};
pub use gradients_file::GradientsHeader;
pub use prefix::PrefixStatistics;
pub use statistics::{InputGrams, InputMagnitudes, LayerStatistics};
