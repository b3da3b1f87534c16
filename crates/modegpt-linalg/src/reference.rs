//! The plain versions, which follow the equations of the paper literally.
//!
//! They cost an order of magnitude more than the rest of the crate and invert where one should solve. They are kept
//! because they can be checked against the paper line by line: the fast versions are tested against them, and so may be
//! any that comes later, on a device for example.
//!
//! `MoDeGPT`, Algorithms 1-3 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).

use faer::linalg::solvers::DenseSolveCore;
use faer::{Mat, MatRef};

use crate::nystrom::rows_of;
use crate::psd::eigen_descending;
use crate::{Error, Gram};

/// `G = Σ_t x_tᵀ x_t`, every product and sum in f64; `rows` is `[n_rows, dim]`.
pub fn gram(rows: &[f32], n_rows: usize, dim: usize) -> Gram {
    assert_eq!(rows.len(), n_rows * dim, "`rows` should hold {n_rows} rows of {dim}");
    let entry = |i: usize, j: usize| -> f64 {
        (0..n_rows).map(|t| f64::from(rows[t * dim + i]) * f64::from(rows[t * dim + j])).sum()
    };
    let packed = (0..dim).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect();
    Gram::from_packed_lower(dim, packed).expect("as many entries as the triangle has")
}

/// Algorithm 1: `s_i = [C (C + λI)⁻¹]_ii`, with `λ = ridge` absolute.
pub fn ridge_leverage_scores(gram: MatRef<'_, f64>, ridge: f64) -> Vec<f64> {
    let dim = gram.nrows();
    let regularised = Mat::from_fn(dim, dim, |i, j| gram[(i, j)] + if i == j { ridge } else { 0.0 });
    let product = gram * regularised.partial_piv_lu().inverse();
    (0..dim).map(|i| product[(i, i)]).collect()
}

/// Algorithm 1: `W' = C_JJ⁺ C_J: W`, the Nyström refit.
///
/// # Errors
/// [`Error::NoConvergence`] if the singular values of `C_JJ` cannot be found.
pub fn nystrom(gram: MatRef<'_, f64>, kept: &[usize], down: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let kept_rows = rows_of(gram, kept); // C_J:, [k, d_ff]
    let kept_block = Mat::from_fn(kept.len(), kept.len(), |i, j| kept_rows[(i, kept[j])]);
    let no_convergence = |_| Error::NoConvergence { rows: kept.len(), columns: kept.len() };
    Ok(kept_block.svd().map_err(no_convergence)?.pseudoinverse() * kept_rows * down)
}

/// Algorithm 2: `s_i = ‖C_Q^½[:,i]‖ ‖C_K^½[:,i]‖`.
///
/// # Errors
/// Those of [`symmetric_root`].
pub fn cr_scores(query_gram: MatRef<'_, f64>, key_gram: MatRef<'_, f64>) -> Result<Vec<f64>, Error> {
    let (query, key) = (symmetric_root(query_gram)?, symmetric_root(key_gram)?);
    Ok(query.col_iter().zip(key.col_iter()).map(|(query, key)| query.norm_l2() * key.norm_l2()).collect())
}

/// Algorithm 3: the new value and output weights of one head, `[d_model, k]` and `[k, d_model]`.
///
/// ```text
/// U Σ Vᵀ = svd(C^½ W_V),      U' Σ' V'ᵀ = svd(Σ Vᵀ W_O),      W_V ← C^-½ U U'_k,      W_O ← Σ'_k V'_kᵀ
/// ```
///
/// `covariance` is the Gram of the block's normalised input, `[d_model, d_model]` and positive definite; `value` is
/// `[d_model, d_head]`, `output` is `[d_head, d_model]`.
///
/// # Errors
/// Those of [`symmetric_root`], and [`Error::NoConvergence`] if a singular value decomposition fails.
pub fn value_output(
    covariance: MatRef<'_, f64>,
    value: MatRef<'_, f64>,
    output: MatRef<'_, f64>,
    rank: usize,
) -> Result<(Mat<f64>, Mat<f64>), Error> {
    let (rows, columns) = value.shape();
    let no_convergence = |_| Error::NoConvergence { rows, columns };
    let root = symmetric_root(covariance)?;
    let first = (&root * value).thin_svd().map_err(no_convergence)?;
    let second = (first.S() * first.V().transpose() * output).thin_svd().map_err(no_convergence)?;
    let new_value = root.partial_piv_lu().inverse() * first.U() * second.U().get(.., ..rank);
    let singular_values = second.S().column_vector();
    let new_output = Mat::from_fn(rank, output.ncols(), |r, j| singular_values[r] * second.V()[(j, r)]);
    Ok((new_value, new_output))
}

/// `A^½ = Q D^½ Qᵀ`, the symmetric root of a symmetric positive semi-definite matrix.
///
/// # Errors
/// [`Error::NoConvergence`] if the eigenvalues cannot be found.
pub fn symmetric_root(matrix: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let (values, vectors) = eigen_descending(matrix)?;
    let scaled = Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt());
    Ok(scaled * vectors.transpose())
}

/// `A = P⁻¹ U_r Σ_r` and `B = V_rᵀ Q⁻¹` of `P W Q = U Σ Vᵀ`, with `P` and `Q` square and regular.
///
/// # Errors
/// [`Error::NoConvergence`] if the singular value decomposition fails.
pub fn weighted_svd(
    weight: MatRef<'_, f64>,
    input: MatRef<'_, f64>,
    output: MatRef<'_, f64>,
    rank: usize,
) -> Result<(Mat<f64>, Mat<f64>), Error> {
    let (rows, columns) = weight.shape();
    let svd = (input * weight * output).thin_svd().map_err(|_| Error::NoConvergence { rows, columns })?;
    let scaled = Mat::from_fn(rows, rank, |i, r| svd.U()[(i, r)] * svd.S().column_vector()[r]);
    let a = input.partial_piv_lu().inverse() * scaled;
    let b = svd.V().get(.., ..rank).transpose() * output.partial_piv_lu().inverse();
    Ok((a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SIZES, assert_close, random_gram};

    #[test]
    fn root_times_itself_is_the_matrix() {
        for dim in SIZES {
            let matrix = random_gram(dim, dim, 1).to_mat();
            let root = symmetric_root(matrix.as_ref()).expect("converges");
            assert_close((&root * &root).as_ref(), matrix.as_ref(), 1e-12);
            assert_close(root.transpose(), root.as_ref(), 1e-12);
        }
    }

    #[test]
    fn hand_computed_leverage() {
        let scores = ridge_leverage_scores(faer::mat![[2.0, 1.0], [1.0, 2.0]].as_ref(), 1.0);
        // C + I = [[3, 1], [1, 3]], its inverse [[3, -1], [-1, 3]] / 8, and [C (C + I)⁻¹]_11 = (6 - 1) / 8.
        assert!(scores.iter().all(|score| (score - 0.625).abs() < 1e-15), "{scores:?}");
    }
}
