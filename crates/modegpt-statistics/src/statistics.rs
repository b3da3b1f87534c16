//! The statistics of one decoder block.

use modegpt_linalg::Gram;

use crate::Error;

/// Sums over the calibration tokens of what one decoder block computes.
///
/// `x` is a row of activations of one token; every Gram matrix is `Σ xᵀ x`, not centred and not divided by the number
/// of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    /// Tokens observed.
    pub n_tokens: u64,
    /// `Σ 1 - cos(x_in, x_out)` over the residual stream before and after the block.
    pub influence_sum: f64,
    /// `[d_ff, d_ff]`: the input of the down map, after activation and gating.
    pub mlp: Gram,
    /// `[d_ff]`: the sum of the same rows.
    pub mlp_sum: Vec<f64>,
    /// `n_heads` of `[d_qk, d_qk]`: projected queries with their bias, before any rotation.
    pub query: Vec<Gram>,
    /// `n_kv_heads` of `[d_qk, d_qk]`: projected keys with their bias, before any rotation.
    pub key: Vec<Gram>,
    /// `n_kv_heads` of `[d_qk]`: the sum of the same rows.
    pub key_sum: Vec<Vec<f64>>,
    /// `n_kv_heads` of `[d_v, d_v]`: projected values without their bias.
    pub value: Vec<Gram>,
    /// `n_heads` of `[d_v, d_v]`: the input of the output map without the value bias. Empty if not collected.
    pub attention_output: Vec<Gram>,
}

impl LayerStatistics {
    /// How much the block turns the residual stream: `1 - mean cos(x_in, x_out)` over tokens
    /// ([arXiv:2403.03853](https://arxiv.org/abs/2403.03853)).
    ///
    /// NaN where no token was observed.
    pub fn block_influence(&self) -> f64 {
        self.influence_sum / self.n_tokens as f64
    }

    /// Adds `other` to these sums: element by element, `self + other`.
    ///
    /// Parts merged in the order of their tokens give the same bits each time. On an error nothing is changed.
    ///
    /// # Errors
    /// [`Error::Shape`] names the first statistic whose shape differs, [`Error::TooManyTokens`] a count out of range.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        self.check_mergeable(other)?;
        self.n_tokens = self
            .n_tokens
            .checked_add(other.n_tokens)
            .ok_or(Error::TooManyTokens { left: self.n_tokens, right: other.n_tokens })?;
        self.influence_sum += other.influence_sum;
        add_values(&mut self.mlp_sum, &other.mlp_sum);
        for (sum, more) in self.key_sum.iter_mut().zip(&other.key_sum) {
            add_values(sum, more);
        }
        let theirs = other.grams();
        for ((field, ours), (_, theirs)) in self.grams_mut().into_iter().zip(theirs) {
            for (sum, more) in ours.iter_mut().zip(theirs) {
                sum.add(more).map_err(|_| shape_error(field, sum.dim(), more.dim()))?;
            }
        }
        Ok(())
    }

    /// Whether every sum is a finite number.
    pub fn is_finite(&self) -> bool {
        self.first_not_finite().is_none()
    }

    /// Checks that the parts fit each other, that all numbers are finite and that no Gram matrix has a negative
    /// diagonal, as is true of every value that calibration makes.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`] or [`Error::NegativeDiagonal`], naming the statistic.
    pub fn check(&self) -> Result<(), Error> {
        self.check_shapes()?;
        if let Some(field) = self.first_not_finite() {
            return Err(Error::NotFinite { field });
        }
        for (field, grams) in self.grams() {
            for gram in grams {
                if let Some((index, value)) = gram.diagonal().into_iter().enumerate().find(|(_, value)| *value < 0.0) {
                    return Err(Error::NegativeDiagonal { field, index, value });
                }
            }
        }
        Ok(())
    }

    /// Every Gram matrix under the name of its field.
    pub(crate) fn grams(&self) -> [(&'static str, &[Gram]); 5] {
        [
            ("mlp", std::slice::from_ref(&self.mlp)),
            ("query", &self.query),
            ("key", &self.key),
            ("value", &self.value),
            ("attention_output", &self.attention_output),
        ]
    }

    fn grams_mut(&mut self) -> [(&'static str, &mut [Gram]); 5] {
        [
            ("mlp", std::slice::from_mut(&mut self.mlp)),
            ("query", &mut self.query),
            ("key", &mut self.key),
            ("value", &mut self.value),
            ("attention_output", &mut self.attention_output),
        ]
    }

    fn check_mergeable(&self, other: &Self) -> Result<(), Error> {
        for ((field, ours), (_, theirs)) in self.grams().into_iter().zip(other.grams()) {
            expect_same(field, &dims(ours), &dims(theirs))?;
        }
        expect_same("mlp_sum", &self.mlp_sum.len(), &other.mlp_sum.len())?;
        let lengths = |sums: &[Vec<f64>]| sums.iter().map(Vec::len).collect::<Vec<_>>();
        expect_same("key_sum", &lengths(&self.key_sum), &lengths(&other.key_sum))
    }

    fn check_shapes(&self) -> Result<(), Error> {
        let d_qk = self.query.first().map_or(0, Gram::dim);
        let d_v = self.value.first().map_or(0, Gram::dim);
        let (n_heads, n_kv_heads) = (self.query.len(), self.key.len());
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(shape_error("key", "a number of heads that divides the query heads", n_kv_heads));
        }
        expect_same("mlp_sum", &self.mlp.dim(), &self.mlp_sum.len())?;
        expect_same("query", &vec![d_qk; n_heads], &dims(&self.query))?;
        expect_same("key", &vec![d_qk; n_kv_heads], &dims(&self.key))?;
        expect_same("key_sum", &vec![d_qk; n_kv_heads], &self.key_sum.iter().map(Vec::len).collect())?;
        expect_same("value", &vec![d_v; n_kv_heads], &dims(&self.value))?;
        if !self.attention_output.is_empty() {
            expect_same("attention_output", &vec![d_v; n_heads], &dims(&self.attention_output))?;
        }
        Ok(())
    }

    fn first_not_finite(&self) -> Option<&'static str> {
        let vectors = [("influence_sum", std::slice::from_ref(&self.influence_sum)), ("mlp_sum", &self.mlp_sum)];
        let key_sums = self.key_sum.iter().map(|sum| ("key_sum", sum.as_slice()));
        let mut vectors = vectors.into_iter().chain(key_sums);
        let bad_vector = vectors.find(|(_, values)| !values.iter().all(|value| value.is_finite()));
        let bad_gram = || self.grams().into_iter().find(|(_, grams)| !grams.iter().all(Gram::is_finite));
        bad_vector.map(|(field, _)| field).or_else(|| bad_gram().map(|(field, _)| field))
    }
}

pub(crate) fn add_values(sum: &mut [f64], more: &[f64]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

pub(crate) fn dims(grams: &[Gram]) -> Vec<usize> {
    grams.iter().map(Gram::dim).collect()
}

pub(crate) fn expect_same<T: PartialEq + std::fmt::Debug>(
    field: &'static str,
    expected: &T,
    found: &T,
) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(shape_error(field, format!("{expected:?}"), format!("{found:?}")))
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over literals, numbers and formatted text alike")]
pub(crate) fn shape_error(field: &'static str, expected: impl ToString, found: impl ToString) -> Error {
    Error::Shape { field, expected: expected.to_string(), found: found.to_string() }
}
