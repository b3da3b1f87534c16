//! What long stages tell while they work.

/// Hears of progress; front ends show it, tests collect it.
pub trait Reporter {
    /// A stage begins, which will count to `total`.
    fn begin(&self, stage: &str, total: u64);

    /// So much of the stage is done.
    fn advance(&self, done: u64);

    /// The stage is over.
    fn end(&self);

    /// Something that the user should know, such as a fallback that fired.
    fn note(&self, remark: &str);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn begin(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _done: u64) {}
    fn end(&self) {}
    fn note(&self, _remark: &str) {}
}
