//! Long runs over a file system: calibration and compression of models of any size, one layer in memory at a time.
//!
//! Everything is written to `<output>.partial`, which is renamed at the end. A run that is killed can be resumed: it
//! continues at the layer it was in, and the files it leaves are the same to the byte.

mod calibrate;
mod compress;
mod error;
mod memory;
mod merge;
mod scratch;
mod statistics_folder;

pub use calibrate::{CalibrationRun, calibrate};
pub use compress::{AllocationChoice, CompressionOptions, CompressionResult, PlanSource, compress, make_plan};
pub use error::RunError;
pub use memory::MemoryPlan;
pub use merge::merge_statistics;
pub use statistics_folder::StatisticsFolder;
