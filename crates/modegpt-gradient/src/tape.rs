//! What the backward pass needs of the forward pass.

use std::ops::Range;

use modegpt_architecture::ModelConfig;
use modegpt_model::ResidualStore;

use crate::GradientError;

/// The text whose loss is differentiated.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// The samples one after another, all of the same length.
    pub ids: &'a [u32],
    /// Which of these tokens count when they are predicted; all if `None`. The first token of a sample is predicted from
    /// nothing and never counts. Samples of different lengths are filled up at their ends with tokens that do not count:
    /// attention looks back only.
    pub counted: Option<&'a [bool]>,
}

impl Samples<'_> {
    /// Positions from which a token that counts is predicted, ascending. In sample `n` the position `t` predicts `t + 1`.
    pub(crate) fn predicting(&self, seq_len: usize) -> Vec<usize> {
        let counts = |at: usize| self.counted.is_none_or(|counted| counted[at]);
        (0..self.ids.len()).filter(|at| (at + 1) % seq_len != 0 && counts(at + 1)).collect()
    }
}

/// The residual streams before, between and behind the layers, `L + 1` of them, each `[n_samples, seq_len, d_model]`.
pub struct Tape<'a> {
    store: Box<dyn ResidualStore + 'a>,
    n_samples: usize,
    seq_len: usize,
    d_model: usize,
    batch: usize,
}

impl<'a> Tape<'a> {
    /// A tape in `store`, which has room for [`Tape::elements`]; `batch` samples are computed at once. What is written must
    /// be read back at once: a place is used again for the gradient.
    pub fn new(
        store: Box<dyn ResidualStore + 'a>,
        config: &ModelConfig,
        n_samples: usize,
        seq_len: usize,
        batch: usize,
    ) -> Self {
        Self { store, n_samples, seq_len, d_model: config.d_model, batch: batch.max(1) }
    }

    /// A tape in memory.
    pub fn in_memory(config: &ModelConfig, n_samples: usize, seq_len: usize, batch: usize) -> Self {
        let store = vec![0.0; Self::elements(config, n_samples, seq_len)];
        Self::new(Box::new(store), config, n_samples, seq_len, batch)
    }

    /// Elements of a tape of these sizes, of four bytes each.
    pub fn elements(config: &ModelConfig, n_samples: usize, seq_len: usize) -> usize {
        (config.layers.len() + 1) * n_samples * seq_len * config.d_model
    }

    /// Number of samples.
    pub fn n_samples(&self) -> usize {
        self.n_samples
    }

    /// Tokens of each.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Reads `samples` of stream `index`, row-major `[samples, seq_len, d_model]`: the input of layer `index` after the
    /// forward pass, its gradient after that layer's backward pass.
    ///
    /// # Errors
    /// [`GradientError::Tape`] with what the store gives.
    pub fn load(&self, index: usize, samples: &Range<usize>) -> Result<Vec<f32>, GradientError> {
        self.rows(index, samples.start * self.seq_len..samples.end * self.seq_len)
    }

    /// `[samples, tokens, d_model]` of a batch.
    pub(crate) fn shape(&self, samples: &Range<usize>) -> [usize; 3] {
        [samples.len(), self.seq_len, self.d_model]
    }

    /// The samples that are computed together.
    pub(crate) fn batches(&self) -> Vec<Range<usize>> {
        (0..self.n_samples).step_by(self.batch).map(|start| start..(start + self.batch).min(self.n_samples)).collect()
    }

    pub(crate) fn store(&mut self, index: usize, samples: &Range<usize>, values: &[f32]) -> Result<(), GradientError> {
        self.replace_rows(index, samples.start * self.seq_len, values)
    }

    /// The given positions, counted over all samples.
    pub(crate) fn rows(&self, index: usize, positions: Range<usize>) -> Result<Vec<f32>, GradientError> {
        let mut values = vec![0.0; positions.len() * self.d_model];
        self.store.read(self.at(index, positions.start), &mut values).map_err(GradientError::Tape)?;
        Ok(values)
    }

    pub(crate) fn replace_rows(&mut self, index: usize, start: usize, values: &[f32]) -> Result<(), GradientError> {
        let at = self.at(index, start);
        self.store.write(at, values).map_err(GradientError::Tape)
    }

    /// Refuses samples that this tape was not made for, and tokens that the model does not have.
    pub(crate) fn check(&self, samples: &Samples<'_>, vocab: usize) -> Result<(), GradientError> {
        let (n_samples, seq_len) = (self.n_samples, self.seq_len);
        let expected = n_samples * seq_len;
        let fits = |what, found| {
            let error = GradientError::Samples { what, expected, n_samples, seq_len, found };
            if found == expected { Ok(()) } else { Err(error) }
        };
        fits("tokens", samples.ids.len())?;
        fits("mask of tokens that count", samples.counted.map_or(expected, <[bool]>::len))?;
        match samples.ids.iter().position(|id| *id as usize >= vocab) {
            Some(position) => Err(GradientError::UnknownToken { position, id: samples.ids[position], vocab }),
            None => Ok(()),
        }
    }

    fn at(&self, index: usize, position: usize) -> usize {
        (index * self.n_samples * self.seq_len + position) * self.d_model
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn last_positions_and_masked_tokens_predict_nothing() {
        let ids = [7; 6];
        assert_eq!(Samples { ids: &ids, counted: None }.predicting(3), [0, 1, 3, 4]);
        let counted = [true, false, true, true, true, false];
        assert_eq!(Samples { ids: &ids, counted: Some(&counted) }.predicting(3), [1, 3]);
        assert!(Samples { ids: &ids, counted: None }.predicting(1).is_empty());
    }
}
