//! Waiting for others, but not for ever.
//!
//! The HTTP client can limit how long a whole body takes, which would forbid large files, but not how long nothing at all
//! arrives. So the waiting is done by a thread of its own; one that waits in vain ends with the program.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// Bytes handed over at once.
const CHUNK: usize = 1 << 16;
/// Chunks that may wait to be taken.
const AHEAD: usize = 4;

/// What `work` returns, if it does within `patience`.
///
/// # Errors
/// `TimedOut` if not; that of the system if there is no thread.
pub(crate) fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new().spawn(move || drop(sender.send(work())))?;
    receiver.recv_timeout(patience).map_err(|_| timed_out(patience))
}

/// A reader that gives up when nothing has arrived for a while.
pub(crate) struct PatientReader {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
    patience: Duration,
}

impl PatientReader {
    /// Reads from `source`, waiting for `patience` at most each time.
    ///
    /// # Errors
    /// That of the system if there is no thread.
    pub(crate) fn new(mut source: impl Read + Send + 'static, patience: Duration) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(AHEAD);
        thread::Builder::new().spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK];
                let read = source.read(&mut chunk);
                let is_last = !matches!(read, Ok(n) if n > 0);
                let read = read.map(|n| {
                    chunk.truncate(n);
                    chunk
                });
                if sender.send(read).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Self { chunks, chunk: io::Cursor::default(), patience })
    }
}

impl Read for PatientReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.chunk.read(buffer)?;
        if n_read > 0 || buffer.is_empty() {
            return Ok(n_read);
        }
        match self.chunks.recv_timeout(self.patience) {
            Ok(chunk) => {
                self.chunk = io::Cursor::new(chunk?);
                self.chunk.read(buffer)
            }
            Err(RecvTimeoutError::Timeout) => Err(timed_out(self.patience)),
            // After the end, or after an error.
            Err(RecvTimeoutError::Disconnected) => Ok(0),
        }
    }
}

fn timed_out(patience: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("nothing arrived for {patience:?}"))
}
