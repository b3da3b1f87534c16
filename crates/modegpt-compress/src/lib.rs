//! Plans and applies modular decomposition: a decoder layer is split into three modules, each a pair of maps that share
//! an inner width, and only these widths shrink.
//!
//! | module | maps | method |
//! | --- | --- | --- |
//! | MLP | up (and gate), down | units kept by ridge leverage score, the down map refitted (Nyström) |
//! | query–key | query, key | columns or rotary pairs kept by the product of their norms (CR) |
//! | value–output | value, output | truncated optimally in the metric of the data (SVD) |
//!
//! Beside it stand the methods that know no modules: every map becomes a product of lower rank, in one of several metrics
//! ([`MapMetric`]), or whole channels go by the size of their weights ([`Methods::WANDA`]).
//!
//! First a [`Plan`] is made: the [`Target`] becomes a sparsity, [`capped_softmax`] spreads it over the layers by their
//! block influence, and [`round_widths`] turns it into widths. The plan is data; it can be read, edited and saved. Then
//! [`compress_layer`] applies it to one layer after another, given the layer's weights and statistics.
//!
//! Modular Decomposition for Large Language Model Compression
//! ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).
//!
//! ```
//! use modegpt_architecture::ModelConfig;
//! use modegpt_compress::{Allocation, ErrorUnit, Mode, Plan, PlanOptions, Ridges, Rounding};
//!
//! let config = ModelConfig::from_json(&serde_json::json!({
//!     "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172,
//!     "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4,
//!     "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
//! }))?;
//! let influences = [0.9, 0.1, 0.2, 0.2, 0.4];
//! let options = PlanOptions {
//!     sparsity: 0.3,
//!     mode: Mode::Paper,
//!     methods: Mode::Paper.methods(),
//!     unit: ErrorUnit::ResidualEnergy,
//!     allocation: Allocation::by_block_influence(&config, &influences)?,
//!     rounding: Rounding::default_for(&config),
//!     ridges: Ridges::default(),
//! };
//! let plan = Plan::new(&config, "fingerprint of the weights", &influences, None, &options)?;
//! assert!((plan.totals.sparsity - 0.3).abs() < 0.005);
//! assert!(plan.layers[1].d_ff < plan.layers[0].d_ff);
//! assert_eq!(Plan::from_json(&plan.to_json())?, plan);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocation;
mod apply;
mod check;
mod curves;
mod descent;
mod error;
mod hold;
mod layer;
mod matrices;
mod method;
mod methods;
mod model_summary;
mod plan;
mod ranks;
mod report;
mod rounding;
mod survey;
mod target;
#[cfg(test)]
mod testing;

pub use allocation::{capped_softmax, epsilon_for_largest, uniform};
pub use apply::{CompressedLayer, compress_layer};
pub use check::check_dense;
pub use curves::{ErrorCurve, ErrorUnit, LayerCurves, WidthGrid};
pub use error::{Error, Module};
pub use hold::HeldWidth;
pub use layer::Layer;
pub use method::per_matrix::{Factorisation, FactorisedLayer, MapReport, factorise_layer};
pub use method::prefix::{refit_down, refit_output};
pub use methods::{MapMetric, Methods, MlpMethod, PrefixRefit, QueryKeyMethod, ValueOutputMethod};
pub use model_summary::{ModelSummary, Widths};
pub use plan::{Allocation, Curves, LayerPlan, Mode, Plan, PlanOptions, Ridges, Totals, TriedPlan};
pub use ranks::{MapCurves, RankCurve, rank_grid, round_ranks};
pub use report::{LayerReport, ModuleReport, Report};
pub use rounding::{Rounding, round_widths};
pub use survey::{LayerSurvey, Orders, survey_layer, survey_maps};
pub use target::{ModelSize, Target};
