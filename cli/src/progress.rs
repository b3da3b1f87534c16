//! Progress bars on stderr, on terminals only, and what each stage took.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use modegpt::Reporter;
use serde::Serialize;

use crate::printer;

/// Shows one bar at a time.
#[derive(Default)]
pub(crate) struct Bars {
    current: RefCell<Option<Current>>,
    ended: RefCell<Vec<StageTime>>,
}

/// The stage that is being worked at.
struct Current {
    name: String,
    begin: Instant,
    bar: ProgressBar,
}

/// A stage that is over, each time that it came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct StageTime {
    /// What its bar said.
    pub(crate) name: String,
    pub(crate) secs: f64,
}

impl Bars {
    /// All stages that are over, in the order in which they first ended; one that came again is told once.
    pub(crate) fn stages(&self) -> Vec<StageTime> {
        self.ended.borrow().clone()
    }
}

impl Reporter for Bars {
    fn begin(&self, stage: &str, total: u64) {
        self.end();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let template = "{prefix:>10} {wide_bar:.cyan/dim} {percent:>3} %  {elapsed_precise}  ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(stage.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        self.current.replace(Some(Current { name: stage.to_owned(), begin: Instant::now(), bar }));
    }

    fn advance(&self, done: u64) {
        if let Some(current) = self.current.borrow().as_ref() {
            current.bar.set_position(done);
        }
    }

    fn end(&self) {
        if let Some(Current { name, begin, bar }) = self.current.take() {
            bar.finish_and_clear();
            let (secs, mut ended) = (begin.elapsed().as_secs_f64(), self.ended.borrow_mut());
            match ended.iter_mut().find(|stage| stage.name == name) {
                Some(stage) => stage.secs += secs,
                None => ended.push(StageTime { name, secs }),
            }
        }
    }

    fn note(&self, remark: &str) {
        let text = format!("note: {remark}");
        match self.current.borrow().as_ref() {
            Some(current) => current.bar.suspend(|| printer::remark(&text)),
            None => printer::remark(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_ends_by_itself_or_where_the_next_begins() {
        let bars = Bars::default();
        bars.end();
        for stage in ["calibrate", "survey", "calibrate", "survey"] {
            bars.begin(stage, 3);
            bars.advance(1);
        }
        let before = bars.stages();
        bars.end();
        let behind = bars.stages();
        let names = |stages: &[StageTime]| stages.iter().map(|stage| stage.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&before), ["calibrate", "survey"]);
        assert_eq!(names(&behind), ["calibrate", "survey"]);
        assert_eq!(behind[0], before[0]);
        assert!(behind[1].secs > before[1].secs, "{before:?}, then {behind:?}");
    }
}
