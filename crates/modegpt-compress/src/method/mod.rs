//! One method for each module of a decoder block, and one for each map by itself.

pub(crate) mod maps;
pub(crate) mod mlp;
pub(crate) mod per_matrix;
pub(crate) mod prefix;
pub(crate) mod query_key;
pub(crate) mod slice;
pub(crate) mod value_output;
