//! The plain versions, which follow the equations of the paper literally.
//!
//! They cost an order of magnitude more than the rest of the crate and invert where one should solve. They are kept
//! because they can be checked against the paper line by line: the fast versions are tested against them, and so may be
//! any that comes later, on a device for example.
//!
//! `MoDeGPT`, Algorithms 1-3 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).

use faer::linalg::solvers::{DenseSolveCore, Svd};
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
    let product = gram * inverse(regularised.as_ref());
    (0..dim).map(|i| product[(i, i)]).collect()
}

/// Algorithm 1: `W' = C_JJ⁺ C_J: W`, the Nyström refit.
///
/// # Errors
/// [`Error::NoConvergence`] if the singular values of `C_JJ` cannot be found.
pub fn nystrom(gram: MatRef<'_, f64>, kept: &[usize], down: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let kept_rows = rows_of(gram, kept); // C_J:, [k, d_ff]
    let kept_block = Mat::from_fn(kept.len(), kept.len(), |i, j| kept_rows[(i, kept[j])]);
    Ok(thin_svd(&kept_block)?.pseudoinverse() * kept_rows * down)
}

/// The Nyström refit with an intercept: a unit that always fires is always kept, and its row is the bias.
///
/// # Errors
/// Those of [`nystrom`].
pub fn nystrom_affine(
    gram: MatRef<'_, f64>,
    sum: &[f64],
    n_tokens: u64,
    kept: &[usize],
    down: MatRef<'_, f64>,
) -> Result<(Mat<f64>, Vec<f64>), Error> {
    let dim = gram.nrows();
    let with_constant = Mat::from_fn(dim + 1, dim + 1, |i, j| match (i == dim, j == dim) {
        (false, false) => gram[(i, j)],
        (false, true) => sum[i],
        (true, false) => sum[j],
        (true, true) => n_tokens as f64,
    });
    let with_bias = Mat::from_fn(dim + 1, down.ncols(), |i, j| if i == dim { 0.0 } else { down[(i, j)] });
    let refit = nystrom(with_constant.as_ref(), &[kept, &[dim]].concat(), with_bias.as_ref())?;
    let (weights, bias) = refit.split_at_row(kept.len());
    Ok((weights.to_owned(), bias.row(0).iter().copied().collect()))
}

/// Greedy elimination from scratch at every step: the units removed, in order, until `n_kept` are left.
///
/// ```text
/// W_J' = (C_JJ + λI)⁻¹ (C + λI)_J: W,      Δ_i = w'_i M w'_iᵀ / [(C_JJ + λI)⁻¹]_ii,      the smallest goes
/// ```
///
/// with `λ = ridge` absolute. Units without energy cost nothing; ties go by lower energy, then by higher index.
pub fn eliminate_units(
    gram: MatRef<'_, f64>,
    down: MatRef<'_, f64>,
    metric: MatRef<'_, f64>,
    ridge: f64,
    n_kept: usize,
) -> Vec<usize> {
    let dim = gram.nrows();
    let regularised = Mat::from_fn(dim, dim, |i, j| gram[(i, j)] + if i == j { ridge } else { 0.0 });
    let mut kept: Vec<usize> = (0..dim).collect();
    let mut order = Vec::new();
    while kept.len() > n_kept {
        let kept_rows = rows_of(regularised.as_ref(), &kept); // (C + λI)_J:, [k, d_ff]
        let kept_block = Mat::from_fn(kept.len(), kept.len(), |i, j| kept_rows[(i, kept[j])]);
        let inverse = inverse(kept_block.as_ref());
        let refitted = &inverse * kept_rows * down;
        let costs = &refitted * metric * refitted.transpose();
        let cost = |i: usize| if gram[(kept[i], kept[i])] > 0.0 { costs[(i, i)] / inverse[(i, i)] } else { 0.0 };
        let energy = |i: usize| gram[(kept[i], kept[i])];
        let cheapest = (0..kept.len())
            .rev() // `min_by` takes the first of equals
            .min_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(energy(a).total_cmp(&energy(b))))
            .expect("more than `n_kept` are left");
        order.push(kept.remove(cheapest));
    }
    order
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
    let root = symmetric_root(covariance)?;
    let first = thin_svd(&(&root * value))?;
    let second = thin_svd(&(first.S() * first.V().transpose() * output))?;
    let new_value = inverse(root.as_ref()) * first.U() * second.U().get(.., ..rank);
    let new_output = scaled(second.V(), &singular_values(&second)[..rank]).transpose().to_owned();
    Ok((new_value, new_output))
}

/// `A^½ = Q D^½ Qᵀ`, the symmetric root of a symmetric positive semi-definite matrix.
///
/// # Errors
/// [`Error::NoConvergence`] if the eigenvalues cannot be found.
pub fn symmetric_root(matrix: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let (values, vectors) = eigen_descending(matrix)?;
    let roots: Vec<f64> = values.iter().map(|value| value.max(0.0).sqrt()).collect();
    Ok(scaled(vectors.as_ref(), &roots) * vectors.transpose())
}

/// The joint query and key factors of one head, `[d, k]` each, through the roots of both Grams.
///
/// ```text
/// P Σ Tᵀ = svd(C_Q^½ C_K^½),      A = C_Q^-½ P_k Σ_k^½,      B = C_K^-½ T_k Σ_k^½
/// ```
///
/// Both Grams are `[d, d]` and positive definite.
///
/// # Errors
/// Those of [`symmetric_root`], and [`Error::NoConvergence`] if the singular value decomposition fails.
pub fn joint_query_key(
    query_gram: MatRef<'_, f64>,
    key_gram: MatRef<'_, f64>,
    rank: usize,
) -> Result<(Mat<f64>, Mat<f64>), Error> {
    let (query, key) = (symmetric_root(query_gram)?, symmetric_root(key_gram)?);
    let svd = thin_svd(&(&query * &key))?;
    let roots: Vec<f64> = singular_values(&svd)[..rank].iter().map(|value| value.sqrt()).collect();
    Ok((inverse(query.as_ref()) * scaled(svd.U(), &roots), inverse(key.as_ref()) * scaled(svd.V(), &roots)))
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
    let svd = thin_svd(&(input * weight * output))?;
    let a = inverse(input) * scaled(svd.U(), &singular_values(&svd)[..rank]);
    let b = svd.V().get(.., ..rank).transpose() * inverse(output);
    Ok((a, b))
}

fn thin_svd(matrix: &Mat<f64>) -> Result<Svd<f64>, Error> {
    let (rows, columns) = matrix.shape();
    matrix.thin_svd().map_err(|_| Error::NoConvergence { rows, columns })
}

fn singular_values(svd: &Svd<f64>) -> Vec<f64> {
    svd.S().column_vector().iter().copied().collect()
}

fn inverse(matrix: MatRef<'_, f64>) -> Mat<f64> {
    matrix.partial_piv_lu().inverse()
}

/// The first columns of `matrix`, each times its scale.
fn scaled(matrix: MatRef<'_, f64>, scales: &[f64]) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), scales.len(), |i, j| matrix[(i, j)] * scales[j])
}

/// The real, then the imaginary parts of the gains of the kept rotary pairs: the least-squares fit of all logits.
///
/// `gram` is `[2 n_pairs, 2 n_pairs]`, of the features of [`eliminate_pairs`](crate::eliminate_pairs).
///
/// # Errors
/// Those of [`nystrom`].
pub fn rotary_gains(gram: MatRef<'_, f64>, kept: &[usize]) -> Result<Vec<f64>, Error> {
    let n_pairs = gram.nrows() / 2;
    let features: Vec<usize> = kept.iter().copied().chain(kept.iter().map(|pair| pair + n_pairs)).collect();
    let dense = Mat::from_fn(2 * n_pairs, 1, |i, _| f64::from(i < n_pairs));
    let fitted = nystrom(gram, &features, dense.as_ref())?;
    Ok(fitted.col(0).iter().copied().collect())
}

/// The order of removal of rotary pairs, every candidate of every step fitted by itself.
///
/// # Errors
/// Those of [`nystrom`].
pub fn eliminate_pairs(grams: &[Mat<f64>]) -> Result<Vec<usize>, Error> {
    let n_pairs = grams[0].nrows() / 2;
    let mut kept: Vec<usize> = (0..n_pairs).collect();
    let mut order = vec![];
    while !kept.is_empty() {
        let mut best = (f64::INFINITY, 0);
        for position in (0..kept.len()).rev() {
            let mut rest = kept.clone();
            rest.remove(position);
            let errors = grams.iter().map(|gram| rotary_error(gram.as_ref(), &rest));
            let error = errors.sum::<Result<f64, Error>>()?;
            best = if error < best.0 { (error, position) } else { best };
        }
        order.push(kept.remove(best.1));
    }
    Ok(order)
}

/// `‖f c₀ - f_J c‖²` with the gains of [`rotary_gains`].
fn rotary_error(gram: MatRef<'_, f64>, kept: &[usize]) -> Result<f64, Error> {
    let n_pairs = gram.nrows() / 2;
    let gains = rotary_gains(gram, kept)?;
    let mut residual = Mat::from_fn(2 * n_pairs, 1, |i, _| f64::from(i < n_pairs));
    for (i, &pair) in kept.iter().enumerate() {
        residual[(pair, 0)] -= gains[i];
        residual[(pair + n_pairs, 0)] -= gains[i + kept.len()];
    }
    Ok((residual.transpose() * gram * &residual)[(0, 0)])
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
