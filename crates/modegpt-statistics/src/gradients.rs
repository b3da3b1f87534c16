//! What a backward pass learns of one decoder block.

use std::collections::BTreeMap;

use modegpt_linalg::Gram;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::statistics::{add_values, dims, expect_same, shape_error};

/// Which tokens the loss is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Labels {
    /// At each position a token drawn from what the model itself predicts there: gradients of the true Fisher
    /// information, whose expectation is zero.
    Sampled {
        /// Seed of the draws.
        seed: u64,
    },
    /// The token of the text: gradients of the empirical Fisher information.
    Next,
}

/// How the squares in [`LayerGradients::row_fisher`] are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowFisher {
    /// `Σ_n Σ_j (∂L_n/∂W_ij)²` with the whole gradient of each sample `n`, as FWSVD has it.
    PerExample,
    /// `Σ_t x_ti² ‖δ_t‖²` with the gradient `x_tᵀ δ_t` of each token by itself, which leaves the products of different
    /// tokens out.
    PerToken,
}

/// Sums over tokens of gradients of the loss `L`, which is itself the *sum* of the token losses in nats.
///
/// `∂L/∂x_t` is a row for every position `t`; every Gram matrix is a sum over all positions, not divided by anything.
/// For a mean over predicted tokens divide by [`n_tokens`](Self::n_tokens).
#[derive(Clone, Debug, PartialEq)]
pub struct LayerGradients {
    /// Tokens whose losses are summed.
    pub n_tokens: u64,
    /// The loss, in nats.
    pub loss_sum: f64,
    /// `[d_model, d_model]`: gradients at what the MLP adds to the residual stream. With pre-normalisation that is the
    /// gradient of the stream after the layer.
    pub residual: Gram,
    /// `[d_model, d_model]`: gradients at what attention adds to the residual stream. With pre-normalisation that is the
    /// gradient of the stream between attention and MLP.
    pub attention_residual: Gram,
    /// `n_heads` of `[d_qk, d_qk]`, for rotary models, else empty: gradients with respect to complex gains of the rotary
    /// pairs, `q' = (a + i b) q` at `a = 1`, `b = 0`, in the order `∂L/∂a_0, ∂L/∂a_1, …, ∂L/∂b_0, …`:
    ///
    /// ```text
    /// ∂L/∂a_p = q_p ∂q_p + q_{p+h} ∂q_{p+h},   ∂L/∂b_p = q_p ∂q_{p+h} − q_{p+h} ∂q_p,   h = d_qk / 2
    /// ```
    pub query_gain: Vec<Gram>,
    /// `n_heads` of `[d_qk, d_qk]`: gradients of the queries before rotation.
    pub query: Vec<Gram>,
    /// `n_kv_heads` of `[d_qk, d_qk]`: gradients of the keys before rotation.
    pub key: Vec<Gram>,
    /// For each linear map, by the names of [`LINEARS`], `[d_in]`: the squared gradient of the weights, summed over each
    /// row. Empty if not asked for.
    pub row_fisher: BTreeMap<&'static str, Vec<f64>>,
}

/// The linear maps of a block, by the names under which [`LayerGradients::row_fisher`] holds them.
pub const LINEARS: [&str; 7] = ["query", "key", "value", "output", "gate", "up", "down"];

impl LayerGradients {
    /// The mean loss of a token in nats; NaN where none was predicted.
    pub fn mean_loss(&self) -> f64 {
        self.loss_sum / self.n_tokens as f64
    }

    /// Adds `other` to these sums: element by element, `self + other`. On an error nothing is changed.
    ///
    /// # Errors
    /// [`Error::Shape`] names the first sum whose shape differs, [`Error::TooManyTokens`] a count out of range.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        for ((field, ours), (_, theirs)) in self.grams().into_iter().zip(other.grams()) {
            expect_same(field, &dims(ours), &dims(theirs))?;
        }
        let lengths = |rows: &Self| rows.row_fisher.iter().map(|(name, row)| (*name, row.len())).collect::<Vec<_>>();
        expect_same("row_fisher", &lengths(self), &lengths(other))?;
        self.n_tokens = self
            .n_tokens
            .checked_add(other.n_tokens)
            .ok_or(Error::TooManyTokens { left: self.n_tokens, right: other.n_tokens })?;
        self.loss_sum += other.loss_sum;
        let theirs = other.grams();
        for ((field, ours), (_, theirs)) in self.grams_mut().into_iter().zip(theirs) {
            for (sum, more) in ours.iter_mut().zip(theirs) {
                sum.add(more).map_err(|_| shape_error(field, sum.dim(), more.dim()))?;
            }
        }
        for (sum, more) in self.row_fisher.values_mut().zip(other.row_fisher.values()) {
            add_values(sum, more);
        }
        Ok(())
    }

    /// Checks that the parts fit each other, that all numbers are finite and that sums of squares are not negative, as is
    /// true of every value that a backward pass makes.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`] or [`Error::NegativeDiagonal`], naming the sum.
    pub fn check(&self) -> Result<(), Error> {
        self.check_shapes()?;
        if !self.loss_sum.is_finite() {
            return Err(Error::NotFinite { field: "loss_sum" });
        }
        for (field, grams) in self.grams() {
            for gram in grams {
                if !gram.is_finite() {
                    return Err(Error::NotFinite { field });
                }
                check_squares(field, &gram.diagonal())?;
            }
        }
        for (name, row) in &self.row_fisher {
            if !row.iter().all(|value| value.is_finite()) {
                return Err(Error::NotFinite { field: name });
            }
            check_squares(name, row)?;
        }
        Ok(())
    }

    /// Every Gram matrix under the name of its field.
    pub(crate) fn grams(&self) -> [(&'static str, &[Gram]); 5] {
        [
            ("residual", std::slice::from_ref(&self.residual)),
            ("attention_residual", std::slice::from_ref(&self.attention_residual)),
            ("query_gain", &self.query_gain),
            ("query", &self.query),
            ("key", &self.key),
        ]
    }

    fn grams_mut(&mut self) -> [(&'static str, &mut [Gram]); 5] {
        [
            ("residual", std::slice::from_mut(&mut self.residual)),
            ("attention_residual", std::slice::from_mut(&mut self.attention_residual)),
            ("query_gain", &mut self.query_gain),
            ("query", &mut self.query),
            ("key", &mut self.key),
        ]
    }

    fn check_shapes(&self) -> Result<(), Error> {
        let d_model = self.residual.dim();
        expect_same("attention_residual", &d_model, &self.attention_residual.dim())?;
        let d_qk = self.query.first().map_or(0, Gram::dim);
        let (n_heads, n_kv_heads) = (self.query.len(), self.key.len());
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(shape_error("key", "a number of heads that divides the query heads", n_kv_heads));
        }
        expect_same("query", &vec![d_qk; n_heads], &dims(&self.query))?;
        expect_same("key", &vec![d_qk; n_kv_heads], &dims(&self.key))?;
        if !self.query_gain.is_empty() {
            expect_same("query_gain", &vec![d_qk; n_heads], &dims(&self.query_gain))?;
        }
        if self.row_fisher.is_empty() {
            return Ok(());
        }
        for name in LINEARS {
            match (name, self.row_fisher.get(name)) {
                ("gate", None) | ("output" | "down", Some(_)) => {}
                (_, Some(row)) => expect_same(name, &d_model, &row.len())?,
                (_, None) => return Err(shape_error("row_fisher", "all linear maps", format!("no `{name}`"))),
            }
        }
        Ok(())
    }
}

fn check_squares(field: &'static str, sums: &[f64]) -> Result<(), Error> {
    match sums.iter().enumerate().find(|(_, value)| **value < 0.0) {
        Some((index, value)) => Err(Error::NegativeDiagonal { field, index, value: *value }),
        None => Ok(()),
    }
}
