//! The units not yet removed, and what each of their removals would cost.

use std::cmp::Ordering;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::inverse::{inverse, inverse_scratch};
use faer::{Mat, MatRef, get_global_parallelism};

use super::panel::{Panel, add_to_lower};
use crate::nystrom::{complement, rows_of};
use crate::psd::factorise_kept;
use crate::{Cholesky, Error, Gram, Jitter};

/// A diagonal entry of `P` that updates have brought below this share of what a factorisation gave holds too few digits
/// to go by: 1e-8 of them leaves half of those of an f64.
const LEAST_SHARE: f64 = 1e-8;

/// What is eliminated from.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub(super) gram: &'a Gram,
    /// The diagonal of `gram`.
    pub(super) energy: &'a [f64],
    pub(super) down: MatRef<'a, f64>,
    pub(super) metric: Option<MatRef<'a, f64>>,
}

impl Problem<'_> {
    /// `x M xᵀ` of every row.
    pub(super) fn energies(&self, rows: MatRef<'_, f64>) -> Vec<f64> {
        let weighed = self.weighed(rows);
        let mut energies = vec![0.0; rows.nrows()];
        for (left, right) in weighed.col_iter().zip(rows.col_iter()) {
            for (energy, (left, right)) in energies.iter_mut().zip(left.iter().zip(right.iter())) {
                *energy += left * right;
            }
        }
        energies.iter().map(|energy| energy.max(0.0)).collect() // below zero only by rounding
    }

    /// `X M`.
    fn weighed(&self, rows: MatRef<'_, f64>) -> Mat<f64> {
        self.metric.map_or_else(|| rows.to_owned(), |metric| rows * metric)
    }

    /// The down projection refitted to `units`, as [`nystrom`](crate::nystrom) does: `[units.len(), d_model]`.
    fn refitted(&self, units: &[usize], cholesky: &Cholesky) -> Mat<f64> {
        let dropped = complement(units, self.gram.dim());
        let kept_down = rows_of(self.down, units);
        if dropped.is_empty() {
            return kept_down;
        }
        let cross = self.gram.block(units, &dropped) * rows_of(self.down, &dropped);
        kept_down + cholesky.solve(cross.as_ref())
    }
}

/// The units left, at positions that change as others go.
pub(super) struct Remaining<'a> {
    problem: Problem<'a>,
    /// `λ`, absolute, jitter included.
    ridge: f64,
    jitter: Jitter,
    condition: f64,
    /// The unit at each position.
    units: Vec<usize>,
    /// `P` as of the last block; only the lower triangle of the first `units.len()` rows means anything.
    inverse: Mat<f64>,
    /// `B = W M Wᵀ`, likewise.
    outputs: Mat<f64>,
    /// `P_ii`, up to date within a block too.
    inverse_diagonal: Vec<f64>,
    /// `B_ii`, likewise.
    output_energy: Vec<f64>,
    /// `P_ii` as the last factorisation gave it.
    factorised_diagonal: Vec<f64>,
    /// How many units there were at the last factorisation.
    n_factorised: usize,
}

impl<'a> Remaining<'a> {
    /// `units` ascending, each with some energy; `ridge` absolute.
    pub(super) fn all(problem: Problem<'a>, units: Vec<usize>, ridge: f64) -> Result<Self, Error> {
        let mut remaining = Self {
            problem,
            ridge,
            jitter: Jitter::default(),
            condition: 1.0,
            units,
            inverse: Mat::new(),
            outputs: Mat::new(),
            inverse_diagonal: Vec::new(),
            output_energy: Vec::new(),
            factorised_diagonal: Vec::new(),
            n_factorised: 0,
        };
        remaining.condition = remaining.refresh()?.condition_estimate();
        Ok(remaining)
    }

    /// What had to be added on top of the ridge, at most.
    pub(super) fn jitter(&self) -> Jitter {
        self.jitter
    }

    /// Estimated condition number of what was factorised first.
    pub(super) fn condition(&self) -> f64 {
        self.condition
    }

    #[cfg(test)]
    pub(super) fn units(&self) -> &[usize] {
        &self.units
    }

    /// Every unit and what its removal would cost.
    #[cfg(test)]
    pub(super) fn costs(&self) -> impl Iterator<Item = (usize, f64)> {
        self.units.iter().enumerate().map(|(position, &unit)| (unit, self.cost(position).expect("digits are left")))
    }

    /// Removes up to `count` units, at least one of those there are, and names them in order of removal.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if no unit has a cost that is a number, and those of a factorisation.
    pub(super) fn remove_block(&mut self, count: usize) -> Result<Vec<usize>, Error> {
        if self.is_imprecise() {
            self.refresh()?;
        }
        let mut panel = Panel::new(self.units.len(), count);
        while panel.positions.len() < count {
            let Some(position) = self.cheapest() else { break };
            self.remove(position, &mut panel);
        }
        if panel.positions.is_empty() && !self.units.is_empty() {
            let value = self.output_energy[0] / self.inverse_diagonal[0];
            return Err(Error::NotFinite { matrix: "cost", row: self.units[0], column: 0, value });
        }
        let removed = panel.positions.iter().map(|&position| self.units[position]).collect();
        panel.update(&mut self.inverse, &mut self.outputs, self.units.len());
        panel.positions.sort_unstable();
        for &position in panel.positions.iter().rev() {
            self.fill_from_last(position);
        }
        Ok(removed)
    }

    /// `Δ_i`, where enough digits are left of it.
    fn cost(&self, position: usize) -> Option<f64> {
        let inverse = self.inverse_diagonal[position];
        let cost = self.output_energy[position].max(0.0) / inverse; // below zero only by rounding
        (inverse > LEAST_SHARE * self.factorised_diagonal[position] && cost.is_finite()).then_some(cost)
    }

    /// Where the unit that costs least is.
    ///
    /// A unit whose cost has lost its digits is left for the next factorisation: `1 / P_ii` has become some 1e8 times
    /// what it was at the last one.
    fn cheapest(&self) -> Option<usize> {
        (0..self.units.len())
            .filter_map(|position| Some((self.cost(position)?, position)))
            .min_by(|&(cost_a, a), &(cost_b, b)| cost_a.total_cmp(&cost_b).then_with(|| self.compare_tied(a, b)))
            .map(|(_, position)| position)
    }

    /// Lower energy first, then higher index.
    fn compare_tied(&self, a: usize, b: usize) -> Ordering {
        let (a, b) = (self.units[a], self.units[b]);
        self.problem.energy[a].total_cmp(&self.problem.energy[b]).then(b.cmp(&a))
    }

    /// Takes one unit out of the diagonals, and notes in `panel` how both matrices change.
    fn remove(&mut self, position: usize, panel: &mut Panel) {
        let n_units = self.units.len();
        let mut z = symmetric_column(self.inverse.as_ref(), position, n_units);
        let mut v = symmetric_column(self.outputs.as_ref(), position, n_units);
        panel.bring_up_to_date(position, &mut z, &mut v);
        // From P_:r and B_:r to z = P_:r / √P_rr and v = (B_:r - ½ B_rr P_:r / P_rr) / √P_rr.
        let pivot = self.inverse_diagonal[position];
        let (root, half_energy) = (pivot.sqrt(), self.output_energy[position].max(0.0) / (2.0 * pivot));
        for i in 0..n_units {
            v[i] = (v[i] - half_energy * z[i]) / root;
            z[i] /= root;
            self.inverse_diagonal[i] -= z[i] * z[i];
            self.output_energy[i] -= 2.0 * z[i] * v[i];
        }
        self.inverse_diagonal[position] = 0.0; // no cost any more: it is gone
        panel.push(position, &z, &v);
    }

    /// Moves the last unit to `position`, whose own is forgotten.
    fn fill_from_last(&mut self, position: usize) {
        let last = self.units.len() - 1;
        for matrix in [&mut self.inverse, &mut self.outputs] {
            for j in 0..position {
                matrix[(position, j)] = matrix[(last, j)];
            }
            for i in position + 1..last {
                matrix[(i, position)] = matrix[(last, i)];
            }
            matrix[(position, position)] = matrix[(last, last)];
        }
        self.units.swap_remove(position);
        self.inverse_diagonal.swap_remove(position);
        self.output_energy.swap_remove(position);
        self.factorised_diagonal.swap_remove(position);
    }

    /// Whether a factorisation is due: some cost has lost its digits, and either all have or one unit in sixteen has gone
    /// since the last time, which bounds what all factorisations together cost.
    fn is_imprecise(&self) -> bool {
        let n_units = self.units.len();
        let n_imprecise = (0..n_units).filter(|&position| self.cost(position).is_none()).count();
        n_imprecise > 0 && (n_imprecise == n_units || 16 * n_units <= 15 * self.n_factorised)
    }

    /// `L Lᵀ = C_JJ + λI`, `P = (L Lᵀ)⁻¹` and `B = W M Wᵀ` for the units there are.
    fn refresh(&mut self) -> Result<Cholesky, Error> {
        (self.inverse, self.outputs) = (Mat::new(), Mat::new()); // makes room
        self.units.sort_unstable();
        let cholesky = self.factorise()?;
        self.inverse = inverse_lower(&cholesky);
        let refitted = self.problem.refitted(&self.units, &cholesky);
        let weighed = self.problem.weighed(refitted.as_ref());
        self.outputs = Mat::zeros(self.units.len(), self.units.len());
        add_to_lower(self.outputs.as_mut(), weighed.as_ref(), refitted.transpose(), 1.0);
        self.inverse_diagonal = diagonal(&self.inverse);
        self.output_energy = diagonal(&self.outputs);
        self.factorised_diagonal.clone_from(&self.inverse_diagonal);
        self.n_factorised = self.units.len();
        Ok(cholesky)
    }

    /// Raises the ridge, for good, if it does not suffice.
    fn factorise(&mut self) -> Result<Cholesky, Error> {
        let Problem { gram, energy, .. } = self.problem;
        let trace: f64 = self.units.iter().map(|&unit| energy[unit]).sum();
        let relative_ridge = if self.units.is_empty() { 0.0 } else { self.ridge * self.units.len() as f64 / trace };
        let cholesky = factorise_kept(gram, &self.units, relative_ridge)?;
        let attempts = cholesky.jitter().attempts;
        if attempts > 0 {
            self.jitter.attempts += attempts;
            self.jitter.relative += (cholesky.ridge() - self.ridge) / gram.mean_diagonal();
            self.ridge = cholesky.ridge();
        }
        Ok(cholesky)
    }
}

/// The lower triangle of `(L Lᵀ)⁻¹`.
fn inverse_lower(cholesky: &Cholesky) -> Mat<f64> {
    let dim = cholesky.lower().nrows();
    let parallelism = get_global_parallelism();
    let mut result = Mat::zeros(dim, dim);
    let mut memory = MemBuffer::new(inverse_scratch::<f64>(dim, parallelism));
    inverse(result.as_mut(), cholesky.lower().as_ref(), parallelism, MemStack::new(&mut memory));
    result
}

fn diagonal(matrix: &Mat<f64>) -> Vec<f64> {
    matrix.diagonal().column_vector().iter().copied().collect()
}

/// The first `len` entries of a column of the symmetric matrix with this lower triangle.
fn symmetric_column(lower: MatRef<'_, f64>, column: usize, len: usize) -> Vec<f64> {
    (0..column).map(|j| lower[(column, j)]).chain((column..len).map(|i| lower[(i, column)])).collect()
}
