//! One method for each module of a decoder block.

pub(crate) mod mlp;
pub(crate) mod query_key;
pub(crate) mod value_output;
