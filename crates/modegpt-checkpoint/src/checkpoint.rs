//! A model as stored, opened and checked, its weights read piece by piece.

use std::ops::Range;
use std::sync::Arc;

use modegpt_architecture::family::{self, KeyTable, LinearLayout};
use modegpt_architecture::{
    DType, Factors, LayerShape, LayerWeights, Linear, MapName, MapShape, Matrix, ModelConfig, Norm, NormWeights,
    OuterWeights, Positions, Weight, WeightError, WeightProvider,
};
use serde_json::Value;

use crate::layout::{TensorSpec, fused_shape, layer_tensors, outer_tensors};
use crate::{LoadError, Source, StoredType, TensorIndex, read_file};

/// Far above any real configuration.
const CONFIG_LIMIT_BYTES: u64 = 16 << 20;

/// A checkpoint whose tensors were found to be those that its configuration asks for.
///
/// Weights are read when asked for and not kept.
#[derive(Clone)]
pub struct Checkpoint {
    source: Arc<dyn Source>,
    index: Arc<TensorIndex>,
    config: ModelConfig,
    config_json: Value,
    keys: KeyTable,
    root: &'static str,
    dtype: DType,
}

impl Checkpoint {
    /// Opens the model in `source` and checks every tensor's presence, shape and element type.
    ///
    /// # Errors
    /// [`LoadError`], naming file and tensor, what was expected and what found.
    pub fn open(source: Arc<dyn Source>) -> Result<Self, LoadError> {
        Self::open_by(source, TensorIndex::open)
    }

    /// As [`Self::open`], but shards may be missing: a tensor in one is an error where it is read.
    ///
    /// # Errors
    /// As [`Self::open`], but for shards that are not there.
    pub fn open_incomplete(source: Arc<dyn Source>) -> Result<Self, LoadError> {
        Self::open_by(source, TensorIndex::open_incomplete)
    }

    fn open_by(
        source: Arc<dyn Source>,
        open: fn(&dyn Source) -> Result<TensorIndex, crate::Error>,
    ) -> Result<Self, LoadError> {
        let config_json = read_json(source.as_ref(), "config.json")?;
        let config = ModelConfig::from_json(&config_json)?;
        let index = open(source.as_ref())?;
        let keys = family::keys(&config);
        let root = find_root(&index, &keys)?;
        let dtype = check_tensors(&index, &config, &keys, root)?;
        Ok(Self { source, index: Arc::new(index), config, config_json, keys, root, dtype })
    }

    /// `config.json` as stored.
    pub fn config_json(&self) -> &Value {
        &self.config_json
    }

    /// Where the files come from.
    pub fn source(&self) -> &dyn Source {
        self.source.as_ref()
    }

    /// The list of stored tensors.
    pub fn index(&self) -> &TensorIndex {
        &self.index
    }

    /// The family's key table and the prefix that this checkpoint uses with it.
    pub fn keys(&self) -> (&KeyTable, &'static str) {
        (&self.keys, self.root)
    }

    /// The element type of the decoder blocks.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of all tensors that belong to the model and are there.
    pub fn bytes(&self) -> u64 {
        self.specs().iter().filter_map(|spec| Some(self.index.get(&spec.name).ok()?.bytes)).sum()
    }

    /// A fingerprint of names, shapes and samples of the weights.
    ///
    /// # Errors
    /// If the samples cannot be read.
    pub fn fingerprint(&self) -> Result<String, LoadError> {
        Ok(self.index.fingerprint(self.source.as_ref())?)
    }

    /// A file beside the weights, such as the tokenizer's, or `None` if there is none of that name.
    ///
    /// # Errors
    /// If it cannot be read, or is larger than `limit_bytes`.
    pub fn companion(&self, file: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, LoadError> {
        match self.source.size(file)? {
            Some(_) => Ok(Some(read_file(self.source.as_ref(), file, limit_bytes)?)),
            None => Ok(None),
        }
    }

    /// One stored tensor, widened to `f32` and checked to be finite.
    ///
    /// # Errors
    /// [`LoadError`] if it is missing, unreadable or not finite.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let values = self.index.read_f32(self.source.as_ref(), name)?;
        self.check_finite(name, &values)?;
        Ok(values)
    }

    fn specs(&self) -> Vec<TensorSpec> {
        all_specs(&self.config, &self.keys, self.root)
    }

    /// Rows of one stored matrix, as [`Checkpoint::tensor`].
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`]; also rows that it does not have.
    pub fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, LoadError> {
        let values = self.index.read_rows(self.source.as_ref(), name, rows)?;
        self.check_finite(name, &values)?;
        Ok(values)
    }

    fn check_finite(&self, name: &str, values: &[f32]) -> Result<(), LoadError> {
        let Some(element) = values.iter().position(|value| !value.is_finite()) else {
            return Ok(());
        };
        let file = self.index.get(name)?.file.clone();
        Err(LoadError::NotFinite { name: name.to_owned(), file, value: values[element], element })
    }

    fn linear(&self, name: &str, map: MapShape) -> Result<Linear<Weight>, LoadError> {
        let MapShape { d_in, d_out, .. } = map;
        let Some(rank) = map.rank else { return Ok(self.dense(name, map)?.into()) };
        let factor = |part: &str, d_in: usize, d_out: usize| {
            let data = self.tensor(&format!("{name}.{part}.weight"))?;
            Ok::<_, LoadError>(Matrix::new(d_out, d_in, data).transposed())
        };
        let weight = Weight::Factorised(Factors { a: factor("a", d_in, rank)?, b: factor("b", rank, d_out)? });
        let bias = if map.bias { Some(self.tensor(&format!("{name}.b.bias"))?) } else { None };
        Ok(Linear { weight, bias })
    }

    fn dense(&self, name: &str, MapShape { d_in, d_out, bias, .. }: MapShape) -> Result<Linear, LoadError> {
        let data = self.tensor(&format!("{name}.weight"))?;
        let weight = match self.keys.layout {
            LinearLayout::OutIn => Matrix::new(d_out, d_in, data).transposed(),
            LinearLayout::InOut => Matrix::new(d_in, d_out, data),
        };
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"))?) } else { None };
        Ok(Linear { weight, bias })
    }

    fn norm(&self, name: &str) -> Result<NormWeights, LoadError> {
        if !self.config.norm_affine {
            return Ok(NormWeights { weight: None, bias: None });
        }
        let bias = match self.config.norm {
            Norm::Layer { .. } => Some(self.tensor(&format!("{name}.bias"))?),
            Norm::Rms { .. } => None,
        };
        Ok(NormWeights { weight: Some(self.tensor(&format!("{name}.weight"))?), bias })
    }

    /// A map that is stored by itself.
    fn map(&self, prefix: &str, shape: &LayerShape, name: MapName) -> Result<Linear<Weight>, LoadError> {
        let key = self.keys.layer.map(name).unwrap_or_else(|| name.to_string());
        self.linear(&format!("{prefix}{key}"), self.config.map_shape(shape, name))
    }

    fn qkv(&self, prefix: &str, shape: &LayerShape) -> Result<[Linear<Weight>; 3], LoadError> {
        let names = [MapName::Query, MapName::Key, MapName::Value];
        let Some(fused) = self.keys.layer.fused_qkv(shape) else {
            let [query, key, value] = names.map(|name| self.map(prefix, shape, name));
            return Ok([query?, key?, value?]);
        };
        let fused = self.dense(&format!("{prefix}{fused}"), fused_shape(&self.config, shape))?;
        let mut start = 0;
        Ok(names.map(|name| {
            let columns = start..start + self.config.map_shape(shape, name).d_out;
            start = columns.end;
            let weight = fused.weight.column_range(columns.start, columns.end).into();
            Linear { weight, bias: fused.bias.as_ref().map(|bias| bias[columns].to_vec()) }
        }))
    }

    fn read_layer(&self, index: usize) -> Result<LayerWeights<Weight>, LoadError> {
        let shape = &self.config.layers[index];
        let prefix = self.keys.layer_prefix(self.root, index);
        let norm = |name: &str| self.norm(&format!("{prefix}{name}"));
        let map = |name| self.map(&prefix, shape, name);
        let [query, key, value] = self.qkv(&prefix, shape)?;
        Ok(LayerWeights {
            attention_norm: norm(self.keys.layer.attention_norm)?,
            query,
            key,
            value,
            output: map(MapName::Output)?,
            mlp_norm: norm(self.keys.layer.mlp_norm)?,
            gate: self.keys.layer.gate.map(|_| map(MapName::Gate)).transpose()?,
            up: map(MapName::Up)?,
            down: map(MapName::Down)?,
        })
    }

    fn read_outer(&self) -> Result<OuterWeights, LoadError> {
        let config = &self.config;
        let norm = || self.norm(&format!("{}{}", self.root, self.keys.final_norm));
        let projection = |name: Option<&str>, d_in, d_out| match name {
            Some(name) if config.d_embedding != config.d_model => {
                let data = self.tensor(&format!("{}{name}.weight", self.root))?;
                Ok(Some(Linear { weight: Matrix::new(d_out, d_in, data).transposed(), bias: None }))
            }
            _ => Ok::<_, LoadError>(None),
        };
        Ok(OuterWeights {
            final_norm: if config.final_norm { Some(norm()?) } else { None },
            project_in: projection(self.keys.project_in, config.d_embedding, config.d_model)?,
            project_out: projection(self.keys.project_out, config.d_model, config.d_embedding)?,
        })
    }

    fn read_embedding_rows(&self, ids: &[u32]) -> Result<Matrix, LoadError> {
        let name = format!("{}{}.weight", self.root, self.keys.embedding);
        let (vocab, width) = (self.config.vocab, self.config.d_embedding);
        let mut data = Vec::with_capacity(ids.len() * width);
        for &id in ids {
            let row = id as usize;
            if row >= vocab {
                return Err(LoadError::Token { id, vocab });
            }
            data.extend(self.rows(&name, row..row + 1)?);
        }
        Ok(Matrix::new(ids.len(), width, data))
    }

    fn read_position_rows(&self, range: Range<usize>) -> Result<Option<Matrix>, LoadError> {
        let (Some(positions), Positions::Learned { offset }) = (self.keys.positions, self.config.positions) else {
            return Ok(None);
        };
        if range.end > self.config.max_positions {
            let max_positions = self.config.max_positions;
            return Err(LoadError::Position { position: range.end - 1, max_positions });
        }
        let name = format!("{}{positions}.weight", self.root);
        let data = self.rows(&name, range.start + offset..range.end + offset)?;
        Ok(Some(Matrix::new(range.len(), self.config.d_model, data)))
    }

    fn read_head_rows(&self, range: Range<usize>) -> Result<Matrix, LoadError> {
        let name = if self.config.tied_head {
            format!("{}{}.weight", self.root, self.keys.embedding)
        } else {
            format!("{}.weight", self.keys.head)
        };
        Ok(Matrix::new(range.len(), self.config.d_embedding, self.rows(&name, range)?))
    }
}

impl WeightProvider for Checkpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layer(&self, index: usize) -> Result<LayerWeights<Weight>, WeightError> {
        Ok(self.read_layer(index)?)
    }

    fn outer(&self) -> Result<OuterWeights, WeightError> {
        Ok(self.read_outer()?)
    }

    fn embedding_rows(&self, ids: &[u32]) -> Result<Matrix, WeightError> {
        Ok(self.read_embedding_rows(ids)?)
    }

    fn position_rows(&self, range: Range<usize>) -> Result<Option<Matrix>, WeightError> {
        Ok(self.read_position_rows(range)?)
    }

    fn head_rows(&self, range: Range<usize>) -> Result<Matrix, WeightError> {
        Ok(self.read_head_rows(range)?)
    }
}

/// Reads and parses a JSON file.
pub(crate) fn read_json(source: &dyn Source, file: &str) -> Result<Value, LoadError> {
    let bytes = read_file(source, file, CONFIG_LIMIT_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|error| LoadError::Json { file: file.to_owned(), reason: error.to_string() })
}

fn all_specs(config: &ModelConfig, keys: &KeyTable, root: &str) -> Vec<TensorSpec> {
    let layers = config.layers.iter().enumerate().flat_map(|(i, shape)| layer_tensors(config, keys, root, i, shape));
    outer_tensors(config, keys, root).into_iter().chain(layers).collect()
}

/// The prefix under which this checkpoint was published.
fn find_root(index: &TensorIndex, keys: &KeyTable) -> Result<&'static str, LoadError> {
    let name = |root: &str| format!("{root}{}.weight", keys.embedding);
    let is_known = |name: &String| index.contains(name) || index.lost().contains_key(name);
    keys.roots.iter().copied().find(|root| is_known(&name(root))).ok_or_else(|| LoadError::NoEmbedding {
        expected: keys.roots.iter().map(|root| format!("`{}`", name(root))).collect::<Vec<_>>().join(" or "),
        found: index.names().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    })
}

/// Compares what is stored with what the configuration asks for; gives the element type of the first layer's weights,
/// or of the first layer that is there.
fn check_tensors(
    index: &TensorIndex,
    config: &ModelConfig,
    keys: &KeyTable,
    root: &'static str,
) -> Result<DType, LoadError> {
    let specs = all_specs(config, keys, root);
    for spec in specs.iter().filter(|spec| !index.lost().contains_key(&spec.name)) {
        if !index.contains(&spec.name) {
            return Err(LoadError::Missing { name: spec.name.clone(), expected: spec.shape.clone() });
        }
        let entry = index.get(&spec.name)?;
        if entry.shape != spec.shape {
            return Err(LoadError::Shape {
                name: spec.name.clone(),
                file: entry.file.clone(),
                expected: spec.shape.clone(),
                found: entry.shape.clone(),
            });
        }
        dtype_of(index, &spec.name)?;
    }
    check_extra(index, config, keys, &specs)?;
    let widest = |layer: usize| {
        let tensors = layer_tensors(config, keys, root, layer, &config.layers[layer]);
        tensors.into_iter().max_by_key(TensorSpec::n_elements).expect("a layer has tensors").name
    };
    let name = (0..config.layers.len()).map(widest).find(|name| index.contains(name));
    dtype_of(index, &name.unwrap_or_else(|| widest(0)))
}

fn dtype_of(index: &TensorIndex, name: &str) -> Result<DType, LoadError> {
    let entry = index.get(name)?;
    match &entry.dtype {
        StoredType::F32 => Ok(DType::F32),
        StoredType::F16 => Ok(DType::F16),
        StoredType::Bf16 => Ok(DType::Bf16),
        other => Err(LoadError::DType { name: name.to_owned(), file: entry.file.clone(), found: other.to_string() }),
    }
}

/// Tensors that nobody asked for mean that configuration and weights belong to different models.
fn check_extra(
    index: &TensorIndex,
    config: &ModelConfig,
    keys: &KeyTable,
    specs: &[TensorSpec],
) -> Result<(), LoadError> {
    let known: std::collections::BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let tied_head = format!("{}.weight", keys.head);
    let has_place = |name: &str| {
        known.contains(name)
            || keys.ignored.iter().any(|ending| name.ends_with(ending))
            // Published beside the embedding that it repeats.
            || (config.tied_head && name == tied_head)
    };
    let extra: Vec<&str> = index.names().filter(|name| !has_place(name)).collect();
    match extra.first() {
        None => Ok(()),
        Some(name) => {
            Err(LoadError::Extra { count: extra.len(), name: (*name).to_owned(), file: index.get(name)?.file.clone() })
        }
    }
}
