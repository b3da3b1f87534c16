//! Everything that can be wrong with a checkpoint.

use std::ops::Range;

/// Why a checkpoint could not be read.
///
/// `place` is what [`Source::describe`](crate::Source::describe) says; sizes and offsets are in bytes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source itself failed, for instance the disk.
    #[error("cannot read `{file}` of {place}: {reason}")]
    Read {
        /// Which source.
        place: String,
        /// Which file.
        file: String,
        /// What the source said.
        reason: String,
    },
    /// A file that must be there is not.
    #[error("{place} has no file `{file}`")]
    MissingFile {
        /// Which source.
        place: String,
        /// Which file.
        file: String,
    },
    /// A file name that points outside the source, or nowhere.
    #[error("expected the name of a file in the same folder, found `{file}`")]
    FileName {
        /// The name.
        file: String,
    },
    /// No file of the source looks like weights.
    #[error("{place} has no weights: expected {expected}, found {found}")]
    NoWeights {
        /// Which source.
        place: String,
        /// What was looked for.
        expected: String,
        /// The weight-like files that could not be chosen from, or `none`.
        found: String,
    },
    /// A file, or a part of it, is larger than anything sensible.
    #[error("{what} of `{file}`: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// Which file.
        file: String,
        /// Which part.
        what: &'static str,
        /// The most that is read.
        limit: u64,
        /// What the file claims.
        found: u64,
    },
    /// A read beyond the end of a file.
    #[error("`{file}` ends too early: expected {bytes} bytes at offset {offset}, found a file of {size} bytes")]
    OutOfRange {
        /// Which file.
        file: String,
        /// Where the read began.
        offset: u64,
        /// How much was wanted.
        bytes: u64,
        /// How large the file is.
        size: u64,
    },
    /// A file that is shorter or longer than its own header says.
    #[error("`{file}` has the wrong size: expected {expected} bytes, found {found}")]
    FileSize {
        /// Which file.
        file: String,
        /// What the header adds up to.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// A container or header that breaks the rules of its format.
    #[error("`{file}` is not a valid {format} file: {reason}")]
    Malformed {
        /// Which file.
        file: String,
        /// Which format it was read as.
        format: &'static str,
        /// Which rule, with what was expected and found.
        reason: String,
    },
    /// A pickle that is broken, or does more than a state dict needs.
    #[error("`{file}` holds an unreadable pickle (offset {offset}): {reason}")]
    Pickle {
        /// Which file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What was expected and found.
        reason: String,
    },
    /// A pickle that names code other than what builds tensors; nothing of it was run.
    #[error("`{file}` refuses to run `{global}`: only tensors and plain data are read from a pickle")]
    RefusedGlobal {
        /// Which file.
        file: String,
        /// `module.name`.
        global: String,
    },
    /// A tensor whose description contradicts itself or its file.
    #[error("tensor `{name}` of `{file}`: {reason}")]
    InvalidTensor {
        /// Which file.
        file: String,
        /// Which tensor.
        name: String,
        /// What was expected and found.
        reason: String,
    },
    /// The index names a tensor which its shard does not hold.
    #[error("`{index}` expects tensor `{name}` in `{shard}`, which does not hold it")]
    NotInShard {
        /// The index file.
        index: String,
        /// The shard.
        shard: String,
        /// The tensor.
        name: String,
    },
    /// A shard holds a tensor which the index does not name.
    #[error("`{shard}` holds tensor `{name}`, which `{index}` does not name")]
    NotInIndex {
        /// The index file.
        index: String,
        /// The shard.
        shard: String,
        /// The tensor.
        name: String,
    },
    /// A shard holds a tensor which the index places in another one.
    #[error("`{found}` holds tensor `{name}`, which `{index}` expects in `{expected}`")]
    WrongShard {
        /// The index file.
        index: String,
        /// The tensor.
        name: String,
        /// The shard that the index names.
        expected: String,
        /// The shard that holds it.
        found: String,
    },
    /// No tensor of this name.
    #[error("the checkpoint has no tensor `{name}`")]
    MissingTensor {
        /// The name asked for.
        name: String,
    },
    /// A tensor that the index places in a file which is not there.
    #[error("tensor `{name}` lies in `{shard}`, which is missing")]
    MissingShard {
        /// The tensor.
        name: String,
        /// The file.
        shard: String,
    },
    /// A tensor whose elements are not floating-point numbers.
    #[error("tensor `{name}`: expected floating-point elements, found {found}")]
    ElementType {
        /// Which tensor.
        name: String,
        /// Its element type.
        found: String,
    },
    /// A tensor of another rank than asked for.
    #[error("tensor `{name}`: expected {expected} dimensions, found shape {found:?}")]
    Rank {
        /// Which tensor.
        name: String,
        /// How many dimensions.
        expected: usize,
        /// Its shape.
        found: Vec<usize>,
    },
    /// Rows that a tensor does not have.
    #[error("tensor `{name}`: expected rows within 0..{n_rows}, found {rows:?}")]
    Rows {
        /// Which tensor.
        name: String,
        /// The rows asked for.
        rows: Range<usize>,
        /// The rows there are.
        n_rows: usize,
    },
}
