//! A panic is a fault of the program: it is told in one line, with an exit code.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;

use crate::failure::Failure;

/// Where the last panic happened and what it said.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics from printing by themselves.
pub(crate) fn install() {
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|at| format!(" at {at}")).unwrap_or_default();
        if let Ok(mut last) = LAST.lock() {
            // The first one is the cause; others follow from it.
            last.get_or_insert_with(|| format!("{message}{place}"));
        }
    }));
}

/// Runs `work`; a panic becomes its message.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        let last = LAST.lock().ok().and_then(|mut last| last.take());
        last.unwrap_or_else(|| "panic without a message".to_owned())
    })
}

/// Runs a command; a panic becomes a [`Failure::Fault`].
pub(crate) fn caught_failure(work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    caught(work).unwrap_or_else(|message| Err(Failure::Fault(message)))
}
