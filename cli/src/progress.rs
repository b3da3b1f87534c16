//! Progress bars on stderr, on terminals only.

use std::cell::RefCell;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use modegpt::Reporter;

use crate::printer;

/// Shows one bar at a time.
#[derive(Default)]
pub(crate) struct Bars {
    current: RefCell<Option<ProgressBar>>,
}

impl Reporter for Bars {
    fn begin(&self, stage: &str, total: u64) {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let template = "{prefix:>10} {wide_bar:.cyan/dim} {percent:>3} %  {elapsed_precise}  ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(stage.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        self.current.replace(Some(bar));
    }

    fn advance(&self, done: u64) {
        if let Some(bar) = self.current.borrow().as_ref() {
            bar.set_position(done);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.current.take() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, remark: &str) {
        let text = format!("note: {remark}");
        match self.current.borrow().as_ref() {
            Some(bar) => bar.suspend(|| printer::remark(&text)),
            None => printer::remark(&text),
        }
    }
}
