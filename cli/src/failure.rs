//! How a command ends when it does not succeed.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use crate::printer;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request could not be met: bad input, no such device, full disk.
    Request(Box<dyn Error + Send + Sync>),
    /// The arguments do not go together.
    Usage(String),
    /// A fault of the program.
    Fault(String),
    /// Whoever read the output wants no more of it.
    ClosedPipe,
}

impl Failure {
    /// A request that cannot be met, in words.
    pub(crate) fn request(text: impl Into<String>) -> Self {
        Self::Request(text.into().into())
    }

    /// Says what is wrong and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Request(error) => {
                printer::remark(&format!("error: {error}"));
                ExitCode::from(1)
            }
            Self::Usage(text) => {
                printer::remark(&format!("error: {text}\n\nFor more information, try '--help'."));
                ExitCode::from(2)
            }
            Self::Fault(text) => {
                printer::remark(&format!("error: this is a fault of modegpt, please report it: {text}"));
                ExitCode::from(2)
            }
            Self::ClosedPipe => ExitCode::SUCCESS,
        }
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let boxed: Box<dyn Error + Send + Sync> = Box::new(error);
        match boxed.downcast_ref::<io::Error>() {
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Request(boxed),
        }
    }
}
