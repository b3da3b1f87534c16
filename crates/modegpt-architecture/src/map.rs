//! The linear maps of a decoder block: their names, their sizes, and at which rank each is held.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{LayerShape, MlpKind, ModelConfig};

/// One of the linear maps of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MapName {
    /// Residual stream to queries.
    Query,
    /// Residual stream to keys.
    Key,
    /// Residual stream to values.
    Value,
    /// Heads to residual stream.
    Output,
    /// Residual stream to the gate of a gated MLP.
    Gate,
    /// Residual stream to hidden units.
    Up,
    /// Hidden units to residual stream.
    Down,
}

impl MapName {
    /// All of them, in the order in which they are stored.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Output => "output",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for MapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rank at which each map of a block is held as a product of two, `None` for a dense map.
///
/// In JSON a dense map is left out or `null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FactorRanks {
    /// Of the query map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<usize>,
    /// Of the key map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<usize>,
    /// Of the value map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<usize>,
    /// Of the output map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<usize>,
    /// Of the gate map; `None` where the MLP has no gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<usize>,
    /// Of the up map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<usize>,
    /// Of the down map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<usize>,
}

impl FactorRanks {
    /// The ranks that `rank` gives to each map.
    pub fn from_fn(mut rank: impl FnMut(MapName) -> Option<usize>) -> Self {
        Self {
            query: rank(MapName::Query),
            key: rank(MapName::Key),
            value: rank(MapName::Value),
            output: rank(MapName::Output),
            gate: rank(MapName::Gate),
            up: rank(MapName::Up),
            down: rank(MapName::Down),
        }
    }

    /// The rank of one map.
    pub fn get(&self, name: MapName) -> Option<usize> {
        match name {
            MapName::Query => self.query,
            MapName::Key => self.key,
            MapName::Value => self.value,
            MapName::Output => self.output,
            MapName::Gate => self.gate,
            MapName::Up => self.up,
            MapName::Down => self.down,
        }
    }

    /// Gives one map a rank, or makes it dense.
    pub fn set(&mut self, name: MapName, rank: Option<usize>) {
        *match name {
            MapName::Query => &mut self.query,
            MapName::Key => &mut self.key,
            MapName::Value => &mut self.value,
            MapName::Output => &mut self.output,
            MapName::Gate => &mut self.gate,
            MapName::Up => &mut self.up,
            MapName::Down => &mut self.down,
        } = rank;
    }

    /// Whether every map is dense.
    pub fn is_dense(&self) -> bool {
        *self == Self::default()
    }
}

/// The sizes of one map of a block: `y = x W + b` with `W: [d_in, d_out]`, or `y = (x A) B + b` at `rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Which map.
    pub name: MapName,
    /// Inputs.
    pub d_in: usize,
    /// Outputs.
    pub d_out: usize,
    /// Whether a bias is added.
    pub bias: bool,
    /// `A: [d_in, rank]`, `B: [rank, d_out]`; `None` for a dense map.
    pub rank: Option<usize>,
}

impl MapShape {
    /// Weights of the map, the bias not counted: `d_in d_out`, or `rank (d_in + d_out)`.
    pub fn params(&self) -> usize {
        match self.rank {
            None => self.d_in * self.d_out,
            Some(rank) => rank * (self.d_in + self.d_out),
        }
    }

    /// The largest rank at which factors hold no more weights than the dense map; 0 if none does.
    pub fn break_even_rank(&self) -> usize {
        self.d_in * self.d_out / (self.d_in + self.d_out)
    }

    /// The rank that is exact for every map of these sizes.
    pub fn full_rank(&self) -> usize {
        self.d_in.min(self.d_out)
    }
}

impl ModelConfig {
    /// The sizes of one map of a layer with the given widths and ranks.
    pub fn map_shape(&self, shape: &LayerShape, name: MapName) -> MapShape {
        let d = self.d_model;
        let (d_in, d_out, bias) = match name {
            MapName::Query => (d, self.n_heads * shape.d_qk, self.qkv_bias),
            MapName::Key => (d, self.n_kv_heads * shape.d_qk, self.qkv_bias),
            MapName::Value => (d, self.n_kv_heads * shape.d_v, self.qkv_bias),
            MapName::Output => (self.n_heads * shape.d_v, d, self.output_bias),
            MapName::Gate | MapName::Up => (d, shape.d_ff, self.mlp_bias),
            MapName::Down => (shape.d_ff, d, self.mlp_bias),
        };
        MapShape { name, d_in, d_out, bias, rank: shape.ranks.get(name) }
    }

    /// The sizes of every map of a layer, in the order of [`MapName::ALL`]; the gate only where there is one.
    pub fn map_shapes(&self, shape: &LayerShape) -> impl Iterator<Item = MapShape> {
        let has = |name: &MapName| *name != MapName::Gate || self.mlp == MlpKind::Gated;
        MapName::ALL.into_iter().filter(has).map(|name| self.map_shape(shape, name))
    }

    /// The first map that is held as a product, with its layer; `None` if all maps are dense.
    pub fn first_factorised(&self) -> Option<(usize, MapShape)> {
        let of_layer = |(index, shape)| self.map_shapes(shape).find(|map| map.rank.is_some()).map(|map| (index, map));
        self.layers.iter().enumerate().find_map(of_layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_kept_under_their_names() {
        let position = |name| MapName::ALL.iter().position(|other| *other == name).map(|p| p + 1);
        let ranks = FactorRanks::from_fn(position);
        for name in MapName::ALL {
            assert_eq!(ranks.get(name), position(name));
            assert_eq!(serde_json::json!(ranks)[name.as_str()], position(name).expect("one of all"));
            let mut changed = ranks;
            changed.set(name, None);
            assert_eq!(changed, FactorRanks::from_fn(|other| position(other).filter(|_| other != name)));
        }
        assert_eq!(serde_json::json!(FactorRanks::default()), serde_json::json!({}));
        assert!(FactorRanks::default().is_dense() && !ranks.is_dense());
    }

    #[test]
    fn factors_at_break_even_hold_no_more_than_the_dense_map_and_one_more_does() {
        for (d_in, d_out) in [(1, 1), (2, 2), (3, 7), (64, 172), (576, 1536), (96, 96)] {
            let at = |rank| MapShape { name: MapName::Up, d_in, d_out, bias: false, rank };
            let most = at(None).break_even_rank();
            assert!(at(Some(most)).params() <= at(None).params(), "{d_in} x {d_out}");
            assert!(at(Some(most + 1)).params() > at(None).params(), "{d_in} x {d_out}");
        }
    }

    #[test]
    fn weights_of_a_layer_are_those_of_its_maps() {
        let config = ModelConfig::from_json(&serde_json::json!({
            "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172,
            "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512,
        }))
        .expect("a valid configuration");
        let dense = config.layers[0].clone();
        assert_eq!(config.linear_params(&dense), 64 * (64 + 32 + 32 + 64) + 3 * 64 * 172);
        let ranks = FactorRanks { key: Some(10), up: Some(3), ..FactorRanks::default() };
        let factorised = LayerShape { ranks, ..dense };
        let expected = 64 * (64 + 32 + 64) + 10 * (64 + 32) + 2 * 64 * 172 + 3 * (64 + 172);
        assert_eq!(config.linear_params(&factorised), expected);
    }
}
