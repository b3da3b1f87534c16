//! The weights of one decoder block on the host.

use std::convert::Infallible;

use crate::{FactorRanks, LayerShape, MapName, Matrix, ModelConfig};

/// `y = x W + b` with `W: [d_in, d_out]`.
///
/// `W` is a [`Matrix`] unless said otherwise: that is what decompositions work on. As stored it is a [`Weight`].
#[derive(Clone, Debug, PartialEq)]
pub struct Linear<W = Matrix> {
    /// `[d_in, d_out]`
    pub weight: W,
    /// `[d_out]`
    pub bias: Option<Vec<f32>>,
}

/// `W = A B`, applied one after the other: `y = (x A) B`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// `[d_in, rank]`
    pub a: Matrix,
    /// `[rank, d_out]`
    pub b: Matrix,
}

/// A weight as a model holds it.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    /// One matrix.
    Dense(Matrix),
    /// A product of two.
    Factorised(Factors),
}

impl Weight {
    /// Inputs.
    pub fn d_in(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.rows,
            Self::Factorised(factors) => factors.a.rows,
        }
    }

    /// Outputs.
    pub fn d_out(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.cols,
            Self::Factorised(factors) => factors.b.cols,
        }
    }

    /// Columns of `A`, or `None` for a dense weight.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Dense(_) => None,
            Self::Factorised(factors) => Some(factors.a.cols),
        }
    }
}

impl From<Matrix> for Weight {
    fn from(matrix: Matrix) -> Self {
        Self::Dense(matrix)
    }
}

impl From<Linear> for Linear<Weight> {
    fn from(linear: Linear) -> Self {
        Self { weight: linear.weight.into(), bias: linear.bias }
    }
}

/// Scale and shift of a normalisation, `[d_model]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct NormWeights {
    /// The scale; `None` where the model normalises without one.
    pub weight: Option<Vec<f32>>,
    /// The shift of a LayerNorm.
    pub bias: Option<Vec<f32>>,
}

/// One decoder block. Heads lie side by side in the columns of `query`, `key` and `value` and in the rows of `output`.
///
/// Every weight is a [`Matrix`] unless said otherwise; `LayerWeights<Weight>` is a block as stored, whose maps may be
/// factorised.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights<W = Matrix> {
    /// Applied before attention (after it in a post-norm model).
    pub attention_norm: NormWeights,
    /// `[d_model, n_heads * d_qk]`
    pub query: Linear<W>,
    /// `[d_model, n_kv_heads * d_qk]`
    pub key: Linear<W>,
    /// `[d_model, n_kv_heads * d_v]`
    pub value: Linear<W>,
    /// `[n_heads * d_v, d_model]`
    pub output: Linear<W>,
    /// Applied before the MLP (after it in a post-norm model).
    pub mlp_norm: NormWeights,
    /// `[d_model, d_ff]`, in gated MLPs only.
    pub gate: Option<Linear<W>>,
    /// `[d_model, d_ff]`
    pub up: Linear<W>,
    /// `[d_ff, d_model]`
    pub down: Linear<W>,
}

/// A map is factorised where a dense one is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {name} map is a product of rank {rank}: expected a dense map")]
pub struct FactorisedMap {
    /// Which map.
    pub name: MapName,
    /// Its rank.
    pub rank: usize,
}

impl<W> LayerWeights<W> {
    /// Every linear map of the block, in the order of [`MapName::ALL`].
    pub fn maps(&self) -> impl Iterator<Item = (MapName, &Linear<W>)> {
        [
            (MapName::Query, Some(&self.query)),
            (MapName::Key, Some(&self.key)),
            (MapName::Value, Some(&self.value)),
            (MapName::Output, Some(&self.output)),
            (MapName::Gate, self.gate.as_ref()),
            (MapName::Up, Some(&self.up)),
            (MapName::Down, Some(&self.down)),
        ]
        .into_iter()
        .filter_map(|(name, linear)| Some((name, linear?)))
    }

    /// Every linear map of the block with its name as text.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear<W>)> {
        self.maps().map(|(name, linear)| (name.as_str(), linear))
    }

    /// The block with every map replaced by what `convert` makes of it; normalisations stay.
    ///
    /// # Errors
    /// The first error of `convert`.
    pub fn try_map<V, E>(
        self,
        mut convert: impl FnMut(MapName, Linear<W>) -> Result<Linear<V>, E>,
    ) -> Result<LayerWeights<V>, E> {
        Ok(LayerWeights {
            attention_norm: self.attention_norm,
            query: convert(MapName::Query, self.query)?,
            key: convert(MapName::Key, self.key)?,
            value: convert(MapName::Value, self.value)?,
            output: convert(MapName::Output, self.output)?,
            mlp_norm: self.mlp_norm,
            gate: self.gate.map(|gate| convert(MapName::Gate, gate)).transpose()?,
            up: convert(MapName::Up, self.up)?,
            down: convert(MapName::Down, self.down)?,
        })
    }
}

impl LayerWeights {
    /// The widths that these weights have, without the rotary pairs (weights do not know them).
    pub fn widths(&self, config: &ModelConfig) -> LayerShape {
        LayerShape {
            d_ff: self.up.weight.cols,
            d_qk: self.query.weight.cols / config.n_heads,
            d_v: self.value.weight.cols / config.n_kv_heads,
            rotary_pairs: None,
            ranks: FactorRanks::default(),
        }
    }
}

impl LayerWeights<Weight> {
    /// The block with every map dense, as it must be for decompositions of it.
    ///
    /// # Errors
    /// [`FactorisedMap`] for the first map that is not.
    pub fn into_dense(self) -> Result<LayerWeights, FactorisedMap> {
        self.try_map(|name, Linear { weight, bias }| match weight {
            Weight::Dense(weight) => Ok(Linear { weight, bias }),
            Weight::Factorised(factors) => Err(FactorisedMap { name, rank: factors.a.cols }),
        })
    }

    /// The rank of every map.
    pub fn ranks(&self) -> FactorRanks {
        FactorRanks::from_fn(|name| self.maps().find(|(other, _)| *other == name)?.1.weight.rank())
    }
}

impl From<LayerWeights> for LayerWeights<Weight> {
    fn from(weights: LayerWeights) -> Self {
        let Ok(weights) = weights.try_map(|_, linear| Ok::<_, Infallible>(linear.into()));
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> LayerWeights<Weight> {
        let linear = |value: f32| Linear { weight: Matrix::new(1, 1, vec![value]), bias: Some(vec![-value]) };
        let norm = || NormWeights { weight: None, bias: None };
        let dense = LayerWeights {
            attention_norm: norm(),
            query: linear(1.0),
            key: linear(2.0),
            value: linear(3.0),
            output: linear(4.0),
            mlp_norm: norm(),
            gate: None,
            up: linear(5.0),
            down: linear(6.0),
        };
        dense.into()
    }

    #[test]
    fn dense_blocks_survive_the_way_there_and_back() {
        let dense = block().into_dense().expect("all maps are dense");
        assert_eq!(LayerWeights::<Weight>::from(dense), block());
        assert!(block().ranks().is_dense());
    }

    #[test]
    fn a_factorised_map_is_named_where_a_dense_one_is_needed() {
        let (a, b) = (Matrix::new(4, 2, vec![0.0; 8]), Matrix::new(2, 3, vec![0.0; 6]));
        let mut weights = block();
        weights.up.weight = Weight::Factorised(Factors { a, b });
        let up = &weights.up.weight;
        assert_eq!((up.d_in(), up.d_out(), up.rank()), (4, 3, Some(2)));
        assert_eq!(weights.ranks(), FactorRanks { up: Some(2), ..FactorRanks::default() });
        let error = weights.into_dense().expect_err("up is not dense");
        assert_eq!(error.to_string(), "the up map is a product of rank 2: expected a dense map");
    }
}
