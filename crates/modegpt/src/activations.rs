//! What the calibration text says of a layer: the spectra and scores that compression decides by.

use faer::{Mat, MatRef, Side};
use modegpt_architecture::{LayerShape, LayerWeights, Matrix, ModelConfig};
use modegpt_linalg::{
    Error, Gram, cr_scores, factorise, ridge_leverage, rotary_pair_scores, singular_values, truncated_svd, value_output,
};
use modegpt_statistics::LayerStatistics;
use serde::Serialize;

/// Of the mean diagonal; keeps units that never fire from making the metric singular.
const METRIC_RIDGE: f64 = 1e-8;

/// One layer, seen through the activations of the calibration tokens; all in f64, energies as means over tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ActivationSpectra {
    /// Tokens observed.
    pub n_tokens: u64,
    /// `1 - mean cos` between input and output of the block.
    pub block_influence: f64,
    /// Eigenvalues of `C / T`, descending, with `C = ZᵀZ` over the hidden units of the MLP.
    pub hidden: Vec<f64>,
    /// `C_ii / T` of every hidden unit.
    pub hidden_energy: Vec<f64>,
    /// `[C (C + λI)⁻¹]_ii` of every hidden unit: how hard it is to replace, from 0 to 1.
    pub leverage: Vec<f64>,
    /// For each kv head, the squared output that each direction of `V W_O` carries, descending.
    pub value_output: Vec<Vec<f64>>,
    /// For each kv head, the score of every coordinate of query and key, or of every rotary pair.
    pub query_key: Vec<Vec<f64>>,
    /// For each kv head, the angular frequency of its rotary pairs, in radians per token; empty without rotation.
    pub rotary_frequencies: Vec<Vec<f64>>,
    /// How well the down map could be truncated.
    pub down_errors: DownErrors,
}

/// `‖Z (W - W')‖² / ‖Z W‖²` for the down map `W` and its replacement `W'` of rank 0, 1, …: the same weight, cut by three
/// metrics, the error measured where the data lives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DownErrors {
    /// Truncated as it is: every input counts the same.
    pub plain: Vec<f64>,
    /// Rows weighted by the energy of their input, the form of FWSVD ([arXiv:2207.00112](https://arxiv.org/abs/2207.00112)).
    pub row_weighted: Vec<f64>,
    /// Whitened by `C = ZᵀZ`: the least error that any matrix of the rank can have.
    pub whitened: Vec<f64>,
}

/// The spectra and scores of one layer.
///
/// `leverage_ridge` is relative to the mean diagonal of the Gram matrix of the hidden units.
///
/// # Errors
/// [`Error`] if a statistic or weight is not finite, or a factorisation fails.
pub fn activation_spectra(
    config: &ModelConfig,
    shape: &LayerShape,
    weights: &LayerWeights,
    statistics: &LayerStatistics,
    leverage_ridge: f64,
) -> Result<ActivationSpectra, Error> {
    let n_tokens = statistics.n_tokens as f64;
    let per_token = |values: Vec<f64>| values.into_iter().map(|value| value / n_tokens).collect::<Vec<_>>();
    let value_output = (0..config.n_kv_heads).map(|head| {
        let values = &statistics.value[head];
        if values.is_zero() {
            // Nothing is ever delivered.
            return Ok(vec![0.0; values.dim()]);
        }
        let output_gram = output_gram(config, &weights.output.weight, head);
        Ok(per_token(value_output(values, output_gram.as_ref(), 0)?.spectrum))
    });
    let query_key = statistics.query.chunks_exact(config.group_size()).zip(&statistics.key);
    Ok(ActivationSpectra {
        n_tokens: statistics.n_tokens,
        block_influence: statistics.block_influence(),
        hidden: per_token(eigenvalues(&statistics.mlp)?),
        hidden_energy: per_token(statistics.mlp.diagonal()),
        leverage: ridge_leverage(&statistics.mlp, leverage_ridge)?.scores,
        value_output: value_output.collect::<Result<_, Error>>()?,
        query_key: query_key.map(|(queries, key)| pair_scores(config, queries, key, n_tokens)).collect(),
        rotary_frequencies: frequencies(config, shape),
        down_errors: down_errors(&statistics.mlp, &weights.down.weight)?,
    })
}

/// Descending; rounding may leave a tiny negative one, which is taken as 0.
fn eigenvalues(gram: &Gram) -> Result<Vec<f64>, Error> {
    let failed = |_| Error::NoConvergence { rows: gram.dim(), columns: gram.dim() };
    let values = gram.to_mat().self_adjoint_eigenvalues(Side::Lower).map_err(failed)?;
    Ok(values.into_iter().rev().map(|value| value.max(0.0)).collect())
}

/// `Σ_j W_O,j W_O,jᵀ` over the query heads `j` of a kv head.
fn output_gram(config: &ModelConfig, output: &Matrix, kv_head: usize) -> Mat<f64> {
    let d_v = output.rows / config.n_heads;
    let first = kv_head * config.group_size();
    let mut gram = Mat::zeros(d_v, d_v);
    for head in first..first + config.group_size() {
        let rows = Mat::from_fn(d_v, output.cols, |row, col| f64::from(output.row(head * d_v + row)[col]));
        let rows: MatRef<'_, f64> = rows.as_ref();
        gram += rows * rows.transpose();
    }
    gram
}

/// The scores that a kv head and the query heads sharing it select by, of mean energies.
fn pair_scores(config: &ModelConfig, queries: &[Gram], key: &Gram, n_tokens: f64) -> Vec<f64> {
    let mut query = vec![0.0; key.dim()];
    for gram in queries {
        query.iter_mut().zip(gram.diagonal()).for_each(|(sum, energy)| *sum += energy / n_tokens);
    }
    let key: Vec<f64> = key.diagonal().iter().map(|energy| energy / n_tokens).collect();
    if config.is_rotary() { rotary_pair_scores(&query, &key) } else { cr_scores(&query, &key) }
}

/// ```text
/// C = L Lᵀ,   P W = U Σ Vᵀ:   ‖Z (W - W')‖² = Σ_i>r σ_i² ‖Lᵀ P⁻¹ u_i‖²,   as the columns of V are orthonormal
/// ```
///
/// with `P = I`, `diag(C)^½` and `Lᵀ`.
fn down_errors(gram: &Gram, down: &Matrix) -> Result<DownErrors, Error> {
    if gram.is_zero() {
        let nothing = vec![0.0; down.rows.min(down.cols) + 1];
        return Ok(DownErrors { plain: nothing.clone(), row_weighted: nothing.clone(), whitened: nothing });
    }
    let lower = factorise(gram.to_mat().as_ref(), METRIC_RIDGE)?;
    let metric = lower.lower().transpose();
    let weight = Mat::from_fn(down.rows, down.cols, |row, col| f64::from(down.row(row)[col]));
    let floor = METRIC_RIDGE * gram.mean_diagonal();
    let roots: Vec<f64> = gram.diagonal().iter().map(|energy| (energy + floor).sqrt()).collect();
    let scaled = Mat::from_fn(down.rows, down.cols, |row, col| roots[row] * weight[(row, col)]);
    let row_metric = Mat::from_fn(down.rows, down.rows, |row, col| metric[(row, col)] / roots[col]);
    let whitened = singular_values((metric * &weight).as_ref())?;
    Ok(DownErrors {
        plain: errors_by_rank(weight.as_ref(), metric)?,
        row_weighted: errors_by_rank(scaled.as_ref(), row_metric.as_ref())?,
        whitened: tail_shares(whitened.iter().map(|value| value * value)),
    })
}

/// `Σ_i>r σ_i² ‖M u_i‖²` for every rank `r`, as shares of the whole.
fn errors_by_rank(matrix: MatRef<'_, f64>, metric: MatRef<'_, f64>) -> Result<Vec<f64>, Error> {
    let svd = truncated_svd(matrix, matrix.nrows().min(matrix.ncols()))?;
    // The columns of `left` are `√σ_i u_i`.
    let seen = metric * &svd.left;
    let energies = svd.singular_values.iter().enumerate();
    Ok(tail_shares(energies.map(|(i, value)| value * seen.col(i).squared_norm_l2()).take(svd.left.ncols())))
}

/// `Σ_i>r e_i / Σ e` for every `r` from 0.
fn tail_shares(energies: impl Iterator<Item = f64>) -> Vec<f64> {
    let energies: Vec<f64> = energies.collect();
    let total: f64 = energies.iter().sum();
    let mut left = 0.0;
    let mut shares: Vec<f64> = std::iter::once(0.0)
        .chain(energies.iter().rev().map(|energy| {
            left += energy;
            if total > 0.0 { left / total } else { 0.0 }
        }))
        .collect();
    shares.reverse();
    shares
}

fn frequencies(config: &ModelConfig, shape: &LayerShape) -> Vec<Vec<f64>> {
    let all = config.rotary_frequencies();
    match &shape.rotary_pairs {
        _ if all.is_empty() => Vec::new(),
        Some(kept) => kept.iter().map(|pairs| pairs.iter().map(|&pair| all[pair]).collect()).collect(),
        None => vec![all; config.n_kv_heads],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, cols: usize, seed: u32) -> Matrix {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        };
        Matrix::new(rows, cols, (0..rows * cols).map(|_| next()).collect())
    }

    /// Correlated inputs of very different sizes.
    fn gram(dim: usize, n_tokens: usize) -> (Mat<f64>, Gram) {
        let (sources, mixing) = (matrix(n_tokens, dim, 1), matrix(dim, dim, 2));
        let wide = |m: &Matrix| Mat::from_fn(m.rows, m.cols, |row, col| f64::from(m.row(row)[col]));
        let inputs = wide(&sources) * wide(&mixing);
        let inputs = Mat::from_fn(n_tokens, dim, |row, col| inputs[(row, col)] * f64::from(2_u32.pow(col as u32)));
        let full = inputs.transpose() * &inputs;
        let packed = (0..dim).flat_map(|row| (0..=row).map(|col| full[(row, col)]).collect::<Vec<_>>()).collect();
        (inputs, Gram::from_packed_lower(dim, packed).expect("packed"))
    }

    #[test]
    fn of_units_that_never_fire_nothing_is_lost() {
        let errors = down_errors(&Gram::zeros(6), &matrix(6, 4, 3)).expect("nothing to lose");
        assert_eq!([errors.plain, errors.row_weighted, errors.whitened], [const { [0.0; 5] }; 3]);
    }

    #[test]
    fn down_errors_are_those_on_the_tokens_and_whitening_is_never_worse() {
        let (inputs, gram) = gram(6, 40);
        let down = matrix(6, 4, 3);
        let errors = down_errors(&gram, &down).expect("finite");
        let weight = Mat::from_fn(6, 4, |row, col| f64::from(down.row(row)[col]));
        let exact = (&inputs * &weight).squared_norm_l2();
        for rank in 0..=4 {
            let cut = truncated_svd(weight.as_ref(), rank).expect("converges").reconstruct();
            let direct = (&inputs * (&weight - cut)).squared_norm_l2() / exact;
            assert!((errors.plain[rank] - direct).abs() < 1e-6, "{} instead of {direct}", errors.plain[rank]);
            assert!(errors.whitened[rank] <= errors.plain[rank] + 1e-12);
            assert!(errors.whitened[rank] <= errors.row_weighted[rank] + 1e-12);
        }
        assert_eq!((errors.plain.len(), errors.whitened.len()), (5, 5));
        assert!((errors.plain[0] - 1.0).abs() < 1e-12 && errors.whitened[4].abs() < 1e-12);
        assert!(errors.plain[2] > 5.0 * errors.whitened[2], "the metric matters: {errors:?}");
    }

    #[test]
    fn eigenvalues_descend_and_add_up_to_the_trace() {
        let (_, gram) = gram(6, 40);
        let values = eigenvalues(&gram).expect("converges");
        assert!(values.is_sorted_by(|a, b| a >= b));
        assert!((values.iter().sum::<f64>() / gram.trace() - 1.0).abs() < 1e-12);
    }
}
