//! The removals of one block, kept aside until both large matrices take them in at once.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, get_global_parallelism};

/// The removals of one block: `P` becomes `P - Σ z zᵀ`, and `B` becomes `B - Σ (z vᵀ + v zᵀ)`.
pub(super) struct Panel {
    /// Where the units removed stand, in order of removal.
    pub(super) positions: Vec<usize>,
    /// One column for every removal.
    z: Mat<f64>,
    v: Mat<f64>,
}

impl Panel {
    pub(super) fn new(n_units: usize, capacity: usize) -> Self {
        let capacity = capacity.min(n_units);
        Self { positions: Vec::new(), z: Mat::zeros(n_units, capacity), v: Mat::zeros(n_units, capacity) }
    }

    pub(super) fn push(&mut self, position: usize, z: &[f64], v: &[f64]) {
        let step = self.positions.len();
        self.z.col_as_slice_mut(step).copy_from_slice(z);
        self.v.col_as_slice_mut(step).copy_from_slice(v);
        self.positions.push(position);
    }

    /// From a column of `P` and one of `B` as of the last block to what they are now.
    pub(super) fn bring_up_to_date(&self, position: usize, inverse: &mut [f64], outputs: &mut [f64]) {
        for step in 0..self.positions.len() {
            let (z, v) = (self.z.col_as_slice(step), self.v.col_as_slice(step));
            let (z_here, v_here) = (z[position], v[position]);
            for ((inverse, outputs), (z, v)) in inverse.iter_mut().zip(outputs.iter_mut()).zip(z.iter().zip(v)) {
                *inverse -= z_here * z;
                *outputs -= z_here * v + v_here * z;
            }
        }
    }

    /// Takes all removals out of the lower triangles of `P` and `B`, rows and columns of the removed units included.
    pub(super) fn update(&self, inverse: &mut Mat<f64>, outputs: &mut Mat<f64>, n_units: usize) {
        let (z, v) = (self.z.get(.., ..self.positions.len()), self.v.get(.., ..self.positions.len()));
        let mut inverse = inverse.get_mut(..n_units, ..n_units);
        let mut outputs = outputs.get_mut(..n_units, ..n_units);
        add_to_lower(inverse.as_mut(), z, z.transpose(), -1.0);
        add_to_lower(outputs.as_mut(), z, v.transpose(), -1.0);
        add_to_lower(outputs.as_mut(), v, z.transpose(), -1.0);
    }
}

/// `target += alpha left right`, of which the lower triangle alone is computed.
pub(super) fn add_to_lower(target: MatMut<'_, f64>, left: MatRef<'_, f64>, right: MatRef<'_, f64>, alpha: f64) {
    triangular::matmul(
        target,
        BlockStructure::TriangularLower,
        Accum::Add,
        left,
        BlockStructure::Rectangular,
        right,
        BlockStructure::Rectangular,
        alpha,
        get_global_parallelism(),
    );
}
