//! Gradients as bytes: a safetensors file like that of statistics.
//!
//! | tensor | shape |
//! | --- | --- |
//! | `loss_sum` | `[1]` |
//! | `residual`, `attention_residual` | `[d_model (d_model + 1) / 2]` |
//! | `query`, `query_gain` | `[n_heads, d_qk (d_qk + 1) / 2]`, the latter for rotary models only |
//! | `key` | `[n_kv_heads, d_qk (d_qk + 1) / 2]` |
//! | `row_fisher.query`, … | `[d_in]`, absent if not asked for |
//!
//! All are `F64`; the header and the number of tokens are JSON under one key of the metadata.

use std::collections::{BTreeMap, HashMap};

use modegpt_linalg::Gram;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::file::{Rows, Stored, read_header, refuse_unknown};
use crate::{Error, Labels, LayerGradients, RowFisher};

const METADATA_KEY: &str = "modegpt_gradients";

/// Names in the file and in [`crate::LINEARS`].
const ROW_FISHER: [(&str, &str); 7] = [
    ("row_fisher.query", "query"),
    ("row_fisher.key", "key"),
    ("row_fisher.value", "value"),
    ("row_fisher.output", "output"),
    ("row_fisher.gate", "gate"),
    ("row_fisher.up", "up"),
    ("row_fisher.down", "down"),
];

const TENSORS: [&str; 6] = ["loss_sum", "residual", "attention_residual", "query_gain", "query", "key"];

/// Where gradients come from. Two files may be used together only if all but `layer` agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradientsHeader {
    /// Version of the file format, [`GradientsHeader::VERSION`].
    pub version: u32,
    /// Index of the layer, from 0.
    pub layer: usize,
    /// Fingerprint of the model.
    pub model_fingerprint: String,
    /// Hash of the tokens, and of which of them count where not all do.
    pub token_hash: String,
    /// Number of samples.
    pub n_samples: usize,
    /// Tokens of each sample.
    pub seq_len: usize,
    /// Which tokens the loss is taken of.
    pub labels: Labels,
    /// How squares of weight gradients were summed, if they were.
    pub row_fisher: Option<RowFisher>,
}

impl GradientsHeader {
    /// The version that this crate writes and reads.
    pub const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHeader {
    header: GradientsHeader,
    n_tokens: u64,
}

impl LayerGradients {
    /// The file described in the module documentation. Equal gradients give equal bytes.
    ///
    /// # Panics
    /// If the names in `header` exceed the 100 MB that safetensors allows for its header.
    pub fn to_bytes(&self, header: &GradientsHeader) -> Vec<u8> {
        let header = FileHeader { header: header.clone(), n_tokens: self.n_tokens };
        let json = serde_json::to_string(&header).expect("strings and integers are always valid JSON");
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), json)]);
        safetensors::serialize(self.stored_tensors(), Some(metadata)).expect("the header is of moderate size")
    }

    /// Reads what [`LayerGradients::to_bytes`] wrote; every bit comes back.
    ///
    /// # Errors
    /// [`Error`] if the bytes are not such a file of this version, lack a tensor or hold an unknown one, if shapes do
    /// not fit each other, or if [`LayerGradients::check`] refuses the numbers. Memory use is bounded by `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, GradientsHeader), Error> {
        let FileHeader { header, n_tokens } = read_header(bytes, METADATA_KEY, GradientsHeader::VERSION)?;
        let tensors = SafeTensors::deserialize(bytes)?;
        let known = |name: &str| TENSORS.contains(&name) || ROW_FISHER.iter().any(|(stored, _)| *stored == name);
        refuse_unknown(&tensors, known)?;
        let stored = |name| Stored::read(&tensors, name);
        let mut row_fisher = BTreeMap::new();
        for (name, linear) in ROW_FISHER {
            if let Some(stored) = Stored::read_optional(&tensors, name)? {
                row_fisher.insert(linear, stored.vector()?);
            }
        }
        if header.row_fisher.is_some() == row_fisher.is_empty() {
            let reason = "`row_fisher` does not say whether such tensors are there".to_owned();
            return Err(Error::Header { reason });
        }
        let gradients = Self {
            n_tokens,
            loss_sum: stored("loss_sum")?.scalar()?,
            residual: stored("residual")?.gram()?,
            attention_residual: stored("attention_residual")?.gram()?,
            query_gain: Stored::read_optional(&tensors, "query_gain")?.map_or(Ok(Vec::new()), Stored::grams)?,
            query: stored("query")?.grams()?,
            key: stored("key")?.grams()?,
            row_fisher,
        };
        gradients.check()?;
        Ok((gradients, header))
    }

    fn stored_tensors(&self) -> Vec<(&'static str, Rows<'_>)> {
        let mut tensors = vec![("loss_sum", Rows::vector(std::slice::from_ref(&self.loss_sum)))];
        for (name, grams) in self.grams() {
            match (name, grams) {
                (_, []) => {}
                ("residual" | "attention_residual", [gram]) => tensors.push((name, Rows::vector(gram.packed_lower()))),
                (_, grams) => tensors.push((name, Rows::matrix(grams.iter().map(Gram::packed_lower).collect()))),
            }
        }
        let rows = ROW_FISHER.into_iter().filter_map(|(name, linear)| Some((name, self.row_fisher.get(linear)?)));
        tensors.extend(rows.map(|(name, row)| (name, Rows::vector(row))));
        tensors
    }
}
