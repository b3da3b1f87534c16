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
    /// `Σ 1 / ‖x_out‖²` over the residual stream after the block, rows of zeros left out: `n_tokens /
    /// inverse_residual_sum` is a mean energy that a few tokens of enormous activation do not lift.
    pub inverse_residual_sum: f64,
    /// `n_heads` of `[d_qk, d_qk]`: what errors of the logits do to the output of attention, to first order and summed
    /// over [`logit_queries`](Self::logit_queries) tokens. Empty if not collected.
    ///
    /// With rotary positions its coordinates are the features of a head's pairs, `Re z_p` for all pairs `p` and then
    /// `-Im z_p`, of which a logit is the sum `Σ_p Re z_p`. Without rotation they are those of the keys.
    pub logit: Vec<Gram>,
    /// Query tokens that [`logit`](Self::logit) sums over.
    pub logit_queries: u64,
    /// The inputs of whole maps, which methods that factorise each matrix by itself need. `None` if not collected.
    pub inputs: Option<InputGrams>,
    /// The sizes of the same inputs, which scaling by activations needs. `None` if not collected.
    pub magnitudes: Option<InputMagnitudes>,
}

/// Gram matrices of what enters the linear maps of a block; that of the down map is [`LayerStatistics::mlp`].
#[derive(Clone, Debug, PartialEq)]
pub struct InputGrams {
    /// `[d_model, d_model]`: the input of the query, key and value maps.
    pub attention: Gram,
    /// `[n_heads * d_v, n_heads * d_v]`: the input of the output map, all heads together, without the value bias.
    pub output: Gram,
    /// `[d_model, d_model]`: the input of the up and gate maps.
    pub mlp: Gram,
}

/// `Σ |x|` of what enters the linear maps of a block, one number for each input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputMagnitudes {
    /// `[d_model]`: the input of the query, key and value maps.
    pub attention: Vec<f64>,
    /// `[n_heads * d_v]`: the input of the output map, without the value bias.
    pub output: Vec<f64>,
    /// `[d_model]`: the input of the up and gate maps.
    pub mlp: Vec<f64>,
    /// `[d_ff]`: the input of the down map.
    pub hidden: Vec<f64>,
}

impl LayerStatistics {
    /// How much the block turns the residual stream: `1 - mean cos(x_in, x_out)` over tokens
    /// ([arXiv:2403.03853](https://arxiv.org/abs/2403.03853)).
    ///
    /// NaN where no token was observed.
    pub fn block_influence(&self) -> f64 {
        self.influence_sum / self.n_tokens as f64
    }

    /// The mean energy of a token in the residual stream after the block, in which tokens of enormous activation weigh
    /// little: the harmonic mean of `‖x_out‖²`.
    ///
    /// Infinite where no token was observed, or every one was zero.
    pub fn residual_energy(&self) -> f64 {
        self.n_tokens as f64 / self.inverse_residual_sum
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
        self.logit_queries = self
            .logit_queries
            .checked_add(other.logit_queries)
            .ok_or(Error::TooManyTokens { left: self.logit_queries, right: other.logit_queries })?;
        self.influence_sum += other.influence_sum;
        self.inverse_residual_sum += other.inverse_residual_sum;
        add_values(&mut self.mlp_sum, &other.mlp_sum);
        for (sum, more) in self.key_sum.iter_mut().zip(&other.key_sum) {
            add_values(sum, more);
        }
        let theirs = other.magnitudes();
        for ((_, ours), (_, theirs)) in self.magnitudes_mut().into_iter().zip(theirs) {
            add_values(ours, theirs);
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
    /// diagonal and no input a negative size, as is true of every value that calibration makes.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], [`Error::NegativeDiagonal`] or [`Error::NegativeMagnitude`], naming the
    /// statistic.
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
        for (field, sums) in self.magnitudes() {
            if let Some((index, &value)) = sums.iter().enumerate().find(|(_, value)| **value < 0.0) {
                return Err(Error::NegativeMagnitude { field, index, value });
            }
        }
        Ok(())
    }

    /// Every sum of magnitudes under its name; none if they were not collected.
    pub(crate) fn magnitudes(&self) -> Vec<(&'static str, &[f64])> {
        let named = self.magnitudes.as_ref().map(|InputMagnitudes { attention, output, mlp, hidden }| {
            let sums: [&[f64]; 4] = [attention, output, mlp, hidden];
            MAGNITUDES.into_iter().zip(sums)
        });
        named.into_iter().flatten().collect()
    }

    fn magnitudes_mut(&mut self) -> Vec<(&'static str, &mut [f64])> {
        let named = self.magnitudes.as_mut().map(|InputMagnitudes { attention, output, mlp, hidden }| {
            let sums: [&mut [f64]; 4] = [attention, output, mlp, hidden];
            MAGNITUDES.into_iter().zip(sums)
        });
        named.into_iter().flatten().collect()
    }

    /// Every Gram matrix under the name of its field.
    pub(crate) fn grams(&self) -> [(&'static str, &[Gram]); 9] {
        let one = std::slice::from_ref;
        let [attention, output, mlp]: [&[Gram]; 3] = match &self.inputs {
            Some(inputs) => [one(&inputs.attention), one(&inputs.output), one(&inputs.mlp)],
            None => [&[], &[], &[]],
        };
        [
            ("mlp", one(&self.mlp)),
            ("query", &self.query),
            ("key", &self.key),
            ("value", &self.value),
            ("attention_output", &self.attention_output),
            ("logit", &self.logit),
            ("attention_input", attention),
            ("output_input", output),
            ("mlp_input", mlp),
        ]
    }

    fn grams_mut(&mut self) -> [(&'static str, &mut [Gram]); 9] {
        let one = std::slice::from_mut;
        let [attention, output, mlp]: [&mut [Gram]; 3] = match &mut self.inputs {
            Some(inputs) => [one(&mut inputs.attention), one(&mut inputs.output), one(&mut inputs.mlp)],
            None => [&mut [], &mut [], &mut []],
        };
        [
            ("mlp", one(&mut self.mlp)),
            ("query", &mut self.query),
            ("key", &mut self.key),
            ("value", &mut self.value),
            ("attention_output", &mut self.attention_output),
            ("logit", &mut self.logit),
            ("attention_input", attention),
            ("output_input", output),
            ("mlp_input", mlp),
        ]
    }

    fn check_mergeable(&self, other: &Self) -> Result<(), Error> {
        for ((field, ours), (_, theirs)) in self.grams().into_iter().zip(other.grams()) {
            expect_same(field, &dims(ours), &dims(theirs))?;
        }
        expect_same("mlp_sum", &self.mlp_sum.len(), &other.mlp_sum.len())?;
        let magnitudes = |statistics: &Self| statistics.magnitudes().iter().map(|(_, sums)| sums.len()).collect();
        expect_same::<Vec<usize>>(MAGNITUDES[0], &magnitudes(self), &magnitudes(other))?;
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
        if !self.logit.is_empty() {
            expect_same("logit", &vec![d_qk; n_heads], &dims(&self.logit))?;
        }
        if let Some(inputs) = &self.inputs {
            expect_same("output_input", &(n_heads * d_v), &inputs.output.dim())?;
            expect_same("mlp_input", &inputs.attention.dim(), &inputs.mlp.dim())?;
        }
        if let Some(magnitudes) = &self.magnitudes {
            let InputMagnitudes { attention, output, mlp, hidden } = magnitudes;
            if let Some(inputs) = &self.inputs {
                expect_same(MAGNITUDES[0], &inputs.attention.dim(), &attention.len())?;
            }
            expect_same(MAGNITUDES[1], &(n_heads * d_v), &output.len())?;
            expect_same(MAGNITUDES[2], &attention.len(), &mlp.len())?;
            expect_same(MAGNITUDES[3], &self.mlp.dim(), &hidden.len())?;
        }
        Ok(())
    }

    fn first_not_finite(&self) -> Option<&'static str> {
        let vectors = [
            ("influence_sum", std::slice::from_ref(&self.influence_sum)),
            ("inverse_residual_sum", std::slice::from_ref(&self.inverse_residual_sum)),
            ("mlp_sum", &self.mlp_sum),
        ];
        let key_sums = self.key_sum.iter().map(|sum| ("key_sum", sum.as_slice()));
        let mut vectors = vectors.into_iter().chain(key_sums).chain(self.magnitudes());
        let bad_vector = vectors.find(|(_, values)| !values.iter().all(|value| value.is_finite()));
        let bad_gram = || self.grams().into_iter().find(|(_, grams)| !grams.iter().all(Gram::is_finite));
        bad_vector.map(|(field, _)| field).or_else(|| bad_gram().map(|(field, _)| field))
    }
}

/// Names of [`InputMagnitudes`] in files and errors, in the order of its fields.
pub(crate) const MAGNITUDES: [&str; 4] =
    ["attention_magnitude", "output_magnitude", "mlp_magnitude", "hidden_magnitude"];

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
