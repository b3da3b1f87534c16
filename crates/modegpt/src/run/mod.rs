//! Long runs over a file system: calibration and compression of models of any size, one layer in memory at a time, and
//! answering of tasks.
//!
//! A folder is written to `<output>.partial`, which is renamed at the end. A run that is killed can be resumed: it
//! continues at the layer it was in, and the files it leaves are the same to the byte.

mod answers;
mod calibrate;
mod compare;
mod compress;
mod decide;
mod error;
mod gradients;
mod gradients_folder;
mod kept_stream;
mod memory;
mod merge;
mod notes;
mod openings;
mod prefix;
mod request_words;
mod scratch;
mod statistics_folder;
mod survey;

pub use crate::plan_request::{AllocationChoice, PlanRequest};
pub use answers::{TaskScores, answer_tasks};
pub use calibrate::{CalibrationRun, calibrate};
pub use compare::{CompareError, CompareRun, NamedMethod, NamedText, ReadingSpeed, SeededDraw, compare};
pub use compress::{CompressionOptions, CompressionResult, PlanSource, check_request, compress, make_plan};
pub use error::RunError;
pub use gradients::{GradientRun, collect_gradients};
pub use gradients_folder::GradientsFolder;
pub use memory::MemoryPlan;
pub use merge::merge_statistics;
pub use statistics_folder::StatisticsFolder;
pub use survey::{Known, SurveyFolder};
