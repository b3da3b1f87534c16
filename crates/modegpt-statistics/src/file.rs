//! Statistics as bytes: a safetensors file of packed lower triangles.
//!
//! | tensor | shape |
//! | --- | --- |
//! | `influence_sum`, `inverse_residual_sum` | `[1]` |
//! | `mlp`, `mlp_sum` | `[d_ff (d_ff + 1) / 2]`, `[d_ff]` |
//! | `query` | `[n_heads, d_qk (d_qk + 1) / 2]` |
//! | `key`, `key_sum` | `[n_kv_heads, d_qk (d_qk + 1) / 2]`, `[n_kv_heads, d_qk]` |
//! | `value` | `[n_kv_heads, d_v (d_v + 1) / 2]` |
//! | `attention_output` | `[n_heads, d_v (d_v + 1) / 2]`, absent if not collected |
//! | `logit` | `[n_heads, d_qk (d_qk + 1) / 2]`, absent if not collected |
//! | `attention_input`, `mlp_input` | `[d_model (d_model + 1) / 2]`, absent if not collected |
//! | `output_input` | `[n (n + 1) / 2]` with `n = n_heads d_v`, absent if not collected |
//! | `attention_magnitude`, `mlp_magnitude` | `[d_model]`, absent if not collected |
//! | `output_magnitude`, `hidden_magnitude` | `[n_heads d_v]`, `[d_ff]`, absent if not collected |
//!
//! All are `F64`. The header and the numbers of tokens are JSON under one key of the safetensors metadata; with a single
//! key the order of the map cannot vary, so the bytes are deterministic.

use std::{borrow::Cow, collections::HashMap};

use modegpt_linalg::Gram;
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Error, InputGrams, InputMagnitudes, LayerStatistics,
    statistics::{MAGNITUDES, shape_error},
};

const METADATA_KEY: &str = "modegpt_statistics";

const TENSORS: [&str; 13] = [
    "influence_sum",
    "inverse_residual_sum",
    "mlp",
    "mlp_sum",
    "query",
    "key",
    "key_sum",
    "value",
    "attention_output",
    "logit",
    "attention_input",
    "output_input",
    "mlp_input",
];

/// Where statistics come from. Two files may be used together only if all but `layer` agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsHeader {
    /// Version of the file format, [`StatisticsHeader::VERSION`].
    pub version: u32,
    /// Index of the layer, from 0.
    pub layer: usize,
    /// Fingerprint of the model that was observed.
    pub model_fingerprint: String,
    /// Hash of the calibration tokens.
    pub token_hash: String,
    /// Number of calibration sequences.
    pub n_samples: usize,
    /// Tokens of each sequence.
    pub seq_len: usize,
}

impl StatisticsHeader {
    /// The version that this crate writes and reads.
    pub const VERSION: u32 = 3;

    /// A header of the current version.
    pub fn new(
        layer: usize,
        model_fingerprint: impl Into<String>,
        token_hash: impl Into<String>,
        n_samples: usize,
        seq_len: usize,
    ) -> Self {
        let (model_fingerprint, token_hash) = (model_fingerprint.into(), token_hash.into());
        Self { version: Self::VERSION, layer, model_fingerprint, token_hash, n_samples, seq_len }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHeader {
    header: StatisticsHeader,
    n_tokens: u64,
    logit_queries: u64,
}

/// Read before the rest, so that a file of a later version is recognised whatever else it holds.
#[derive(Deserialize)]
struct VersionOnly {
    header: VersionField,
}

#[derive(Deserialize)]
struct VersionField {
    version: u32,
}

impl LayerStatistics {
    /// The file described in the module documentation. Equal statistics give equal bytes.
    ///
    /// # Panics
    /// If the names in `header` exceed the 100 MB that safetensors allows for its header.
    pub fn to_bytes(&self, header: &StatisticsHeader) -> Vec<u8> {
        let header = FileHeader { header: header.clone(), n_tokens: self.n_tokens, logit_queries: self.logit_queries };
        let json = serde_json::to_string(&header).expect("strings and integers are always valid JSON");
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), json)]);
        safetensors::serialize(self.stored_tensors(), Some(metadata)).expect("the header is of moderate size")
    }

    /// Reads what [`LayerStatistics::to_bytes`] wrote; every bit comes back.
    ///
    /// # Errors
    /// [`Error`] if the bytes are not such a file of this version, lack a tensor or hold an unknown one, if shapes do
    /// not fit each other, or if [`LayerStatistics::check`] refuses the numbers. Memory use is bounded by `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, StatisticsHeader), Error> {
        let FileHeader { header, n_tokens, logit_queries } =
            read_header(bytes, METADATA_KEY, StatisticsHeader::VERSION)?;
        let tensors = SafeTensors::deserialize(bytes)?;
        refuse_unknown(&tensors, |name| TENSORS.contains(&name) || MAGNITUDES.contains(&name))?;
        let stored = |name| Stored::read(&tensors, name);
        let optional = |name| Stored::read_optional(&tensors, name);
        let statistics = Self {
            n_tokens,
            influence_sum: stored("influence_sum")?.scalar()?,
            mlp: stored("mlp")?.gram()?,
            mlp_sum: stored("mlp_sum")?.vector()?,
            query: stored("query")?.grams()?,
            key: stored("key")?.grams()?,
            key_sum: stored("key_sum")?.rows()?,
            value: stored("value")?.grams()?,
            attention_output: optional("attention_output")?.map_or(Ok(Vec::new()), Stored::grams)?,
            inverse_residual_sum: stored("inverse_residual_sum")?.scalar()?,
            logit: optional("logit")?.map_or(Ok(Vec::new()), Stored::grams)?,
            logit_queries,
            inputs: match optional("attention_input")? {
                None => None,
                Some(attention) => Some(InputGrams {
                    attention: attention.gram()?,
                    output: stored("output_input")?.gram()?,
                    mlp: stored("mlp_input")?.gram()?,
                }),
            },
            magnitudes: match optional(MAGNITUDES[0])? {
                None => None,
                Some(attention) => Some(InputMagnitudes {
                    attention: attention.vector()?,
                    output: stored(MAGNITUDES[1])?.vector()?,
                    mlp: stored(MAGNITUDES[2])?.vector()?,
                    hidden: stored(MAGNITUDES[3])?.vector()?,
                }),
            },
        };
        statistics.check()?;
        Ok((statistics, header))
    }

    fn stored_tensors(&self) -> Vec<(&'static str, Rows<'_>)> {
        let scalar = |value| Rows::vector(std::slice::from_ref(value));
        let mut tensors = vec![
            ("influence_sum", scalar(&self.influence_sum)),
            ("inverse_residual_sum", scalar(&self.inverse_residual_sum)),
            ("mlp_sum", Rows::vector(&self.mlp_sum)),
            ("key_sum", Rows::matrix(self.key_sum.iter().map(Vec::as_slice).collect())),
        ];
        tensors.extend(self.magnitudes().into_iter().map(|(name, sums)| (name, Rows::vector(sums))));
        for (name, grams) in self.grams() {
            match (name, grams) {
                (_, []) => {}
                ("mlp" | "attention_input" | "output_input" | "mlp_input", [gram]) => {
                    tensors.push((name, Rows::vector(gram.packed_lower())));
                }
                (_, grams) => tensors.push((name, Rows::matrix(grams.iter().map(Gram::packed_lower).collect()))),
            }
        }
        tensors
    }
}

/// The JSON under `key` of the metadata, if its `header` has the given version.
pub(crate) fn read_header<H: DeserializeOwned>(bytes: &[u8], key: &str, expected: u32) -> Result<H, Error> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let json = metadata.metadata().as_ref().and_then(|map| map.get(key));
    let json = json.ok_or_else(|| Error::Header { reason: format!("metadata `{key}` is missing") })?;
    let unreadable = |error: serde_json::Error| Error::Header { reason: error.to_string() };
    let VersionOnly { header: VersionField { version: found } } = serde_json::from_str(json).map_err(unreadable)?;
    if found != expected {
        return Err(Error::Version { expected, found });
    }
    serde_json::from_str(json).map_err(unreadable)
}

/// # Errors
/// [`Error::UnknownTensor`] with the first tensor that is not `known`.
pub(crate) fn refuse_unknown(tensors: &SafeTensors<'_>, known: impl Fn(&str) -> bool) -> Result<(), Error> {
    match tensors.names().into_iter().find(|name| !known(name)) {
        Some(name) => Err(Error::UnknownTensor { name: name.to_owned() }),
        None => Ok(()),
    }
}

/// Rows of equal length that are written one after another, without an intermediate copy of all of them.
pub(crate) struct Rows<'a> {
    shape: Vec<usize>,
    rows: Vec<&'a [f64]>,
}

impl<'a> Rows<'a> {
    pub(crate) fn vector(values: &'a [f64]) -> Self {
        Self { shape: vec![values.len()], rows: vec![values] }
    }

    pub(crate) fn matrix(rows: Vec<&'a [f64]>) -> Self {
        Self { shape: vec![rows.len(), rows.first().map_or(0, |row| row.len())], rows }
    }
}

impl View for Rows<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F64
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        bytes.extend(self.rows.iter().copied().flatten().flat_map(|value| value.to_le_bytes()));
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f64>()
    }
}

/// A tensor of a file, its values not yet read.
pub(crate) struct Stored<'a> {
    name: &'static str,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Stored<'a> {
    pub(crate) fn read(tensors: &SafeTensors<'a>, name: &'static str) -> Result<Self, Error> {
        let view = tensors.tensor(name).map_err(|_| Error::MissingTensor { name })?;
        if view.dtype() != Dtype::F64 {
            return Err(shape_error(name, "elements of type F64", format!("{:?}", view.dtype())));
        }
        // An empty axis would let the other be of any length at no cost in bytes.
        if view.shape().contains(&0) {
            return Err(shape_error(name, "no empty axis", format!("{:?}", view.shape())));
        }
        Ok(Self { name, shape: view.shape().to_vec(), bytes: view.data() })
    }

    pub(crate) fn read_optional(tensors: &SafeTensors<'a>, name: &'static str) -> Result<Option<Self>, Error> {
        match Self::read(tensors, name) {
            Err(Error::MissingTensor { .. }) => Ok(None),
            stored => stored.map(Some),
        }
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        let (elements, _) = self.bytes.as_chunks();
        elements.iter().map(|bytes| f64::from_le_bytes(*bytes))
    }

    pub(crate) fn vector(self) -> Result<Vec<f64>, Error> {
        match self.shape[..] {
            [_] => Ok(self.values().collect()),
            _ => Err(self.wrong_shape("one axis")),
        }
    }

    pub(crate) fn scalar(self) -> Result<f64, Error> {
        match (&self.shape[..], self.values().next()) {
            ([1], Some(value)) => Ok(value),
            _ => Err(self.wrong_shape("[1]")),
        }
    }

    fn rows(self) -> Result<Vec<Vec<f64>>, Error> {
        let [_, width] = self.shape[..] else { return Err(self.wrong_shape("two axes")) };
        let values: Vec<f64> = self.values().collect();
        Ok(values.chunks_exact(width).map(<[f64]>::to_vec).collect())
    }

    pub(crate) fn gram(self) -> Result<Gram, Error> {
        let name = self.name;
        gram(name, self.vector()?)
    }

    pub(crate) fn grams(self) -> Result<Vec<Gram>, Error> {
        let name = self.name;
        self.rows()?.into_iter().map(|packed| gram(name, packed)).collect()
    }

    fn wrong_shape(&self, expected: &str) -> Error {
        shape_error(self.name, expected, format!("{:?}", self.shape))
    }
}

fn gram(name: &'static str, packed: Vec<f64>) -> Result<Gram, Error> {
    let len = packed.len();
    let dim = (((8 * len as u64 + 1).isqrt() - 1) / 2) as usize;
    let expected = dim * (dim + 1) / 2;
    if expected != len {
        return Err(shape_error(name, "the n (n + 1) / 2 elements of a lower triangle", len));
    }
    Gram::from_packed_lower(dim, packed).map_err(|error| shape_error(name, "a packed Gram matrix", error))
}
