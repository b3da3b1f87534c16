//! The residual stream of many sequences, carried through a model one layer at a time.

use std::ops::Range;

use modegpt_architecture::WeightProvider;

use crate::{Compute, ComputeError, Embedder};

/// Why a store failed.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// Where the stream waits between two layers: memory, or a file where memory is short.
pub trait ResidualStore {
    /// Fills `values` from the elements that begin at `start`.
    ///
    /// # Errors
    /// Whatever the storage gives.
    fn read(&self, start: usize, values: &mut [f32]) -> Result<(), StoreError>;

    /// Replaces the elements that begin at `start`.
    ///
    /// # Errors
    /// Whatever the storage gives.
    fn write(&mut self, start: usize, values: &[f32]) -> Result<(), StoreError>;
}

impl ResidualStore for Vec<f32> {
    fn read(&self, start: usize, values: &mut [f32]) -> Result<(), StoreError> {
        values.copy_from_slice(&self[start..start + values.len()]);
        Ok(())
    }

    fn write(&mut self, start: usize, values: &[f32]) -> Result<(), StoreError> {
        self[start..start + values.len()].copy_from_slice(values);
        Ok(())
    }
}

impl<S: ResidualStore + ?Sized> ResidualStore for &mut S {
    fn read(&self, start: usize, values: &mut [f32]) -> Result<(), StoreError> {
        (**self).read(start, values)
    }

    fn write(&mut self, start: usize, values: &[f32]) -> Result<(), StoreError> {
        (**self).write(start, values)
    }
}

/// `n_samples` sequences of `seq_len` tokens each, as the input of the next layer: `[n_samples, seq_len, d_model]`.
pub struct ResidualStream<'a> {
    store: Box<dyn ResidualStore + 'a>,
    n_samples: usize,
    seq_len: usize,
    d_model: usize,
    batch: usize,
}

impl<'a> ResidualStream<'a> {
    /// A stream in `store`, which has room for (or already holds) all sequences; `batch` of them are computed at once.
    pub fn new(
        store: Box<dyn ResidualStore + 'a>,
        n_samples: usize,
        seq_len: usize,
        d_model: usize,
        batch: usize,
    ) -> Self {
        Self { store, n_samples, seq_len, d_model, batch: batch.max(1) }
    }

    /// A stream in memory.
    pub fn in_memory(n_samples: usize, seq_len: usize, d_model: usize, batch: usize) -> Self {
        Self::new(Box::new(vec![0.0; n_samples * seq_len * d_model]), n_samples, seq_len, d_model, batch)
    }

    /// Elements of a stream of these sizes.
    pub fn elements(n_samples: usize, seq_len: usize, d_model: usize) -> usize {
        n_samples * seq_len * d_model
    }

    /// Fills the stream with the embeddings of `ids`, the sequences one after another.
    ///
    /// # Errors
    /// [`ComputeError`] if an id is unknown or the device or store fails.
    pub async fn embed(
        &mut self,
        weights: &dyn WeightProvider,
        ids: &[u32],
        compute: &Compute,
    ) -> Result<(), ComputeError> {
        let embedder = Embedder::new(weights, compute)?;
        for samples in self.batches() {
            let ids = &ids[samples.start * self.seq_len..samples.end * self.seq_len];
            let x = embedder.embed(weights, ids, samples.len(), 0, compute)?;
            let x = compute.read(x).await?;
            self.store(&samples, &x)?;
        }
        Ok(())
    }

    /// The samples that are computed together.
    pub fn batches(&self) -> Vec<Range<usize>> {
        self.batches_of(&(0..self.n_samples))
    }

    /// The samples of `range` that are computed together.
    pub fn batches_of(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        range.clone().step_by(self.batch).map(|start| start..(start + self.batch).min(range.end)).collect()
    }

    /// `[samples, tokens, d_model]` of a batch.
    pub fn shape(&self, samples: &Range<usize>) -> [usize; 3] {
        [samples.len(), self.seq_len, self.d_model]
    }

    /// Reads a batch, row-major.
    ///
    /// # Errors
    /// [`ComputeError::Weights`] with what the store gives.
    pub fn load(&self, samples: &Range<usize>) -> Result<Vec<f32>, ComputeError> {
        let mut values = vec![0.0; samples.len() * self.seq_len * self.d_model];
        self.store.read(samples.start * self.seq_len * self.d_model, &mut values)?;
        Ok(values)
    }

    /// Replaces a batch by what came out of the layer.
    ///
    /// # Errors
    /// [`ComputeError::Weights`] with what the store gives.
    pub fn store(&mut self, samples: &Range<usize>, values: &[f32]) -> Result<(), ComputeError> {
        Ok(self.store.write(samples.start * self.seq_len * self.d_model, values)?)
    }
}
