//! Gram matrices of whole activations: the hidden units of the MLP, by far the largest, and the inputs of maps.

use burn::tensor::{FloatDType, Tensor};
use modegpt_linalg::{Gram, GramAccumulator};
use modegpt_model::{Compute, ComputeError};

/// Rows that are summed in f32 before the sum goes on in f64. Longer sums on a card lose digits: at 256 rows the error
/// is about 1e-7 on every device measured, at 8192 it is 4e-6.
const ROWS_PER_BLOCK: usize = 256;

/// Where `ZᵀZ` is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GramPath {
    /// On the host, the lower triangle only.
    Host,
    /// On the device in f32, in short blocks whose sums go on in f64 on the host.
    DeviceF32,
    /// On the device in f64, where f32 products would be rounded to TF32.
    DeviceF64,
}

impl GramPath {
    /// `LᵀR`, in f32 of whatever it was summed in.
    pub(crate) fn product(self, left: Tensor<2>, right: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Host | Self::DeviceF32 => left.transpose().matmul(right),
            Self::DeviceF64 => {
                let [left, right] = [left, right].map(|x| x.cast(FloatDType::F64));
                left.transpose().matmul(right).cast(FloatDType::F32)
            }
        }
    }
}

/// Accumulates `ZᵀZ` and `Σ z` over rows `z` of an activation.
pub struct ActivationGram {
    path: GramPath,
    gram: GramAccumulator,
    sum: Vec<f64>,
}

impl ActivationGram {
    /// The sum over no rows of this width.
    pub fn new(width: usize, path: GramPath) -> Self {
        Self { path, gram: GramAccumulator::new(width), sum: vec![0.0; width] }
    }

    /// Adds rows: `[n_rows, width]`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the device fails.
    pub async fn add(&mut self, rows: Tensor<2>, compute: &Compute) -> Result<(), ComputeError> {
        let [n_rows, width] = rows.dims();
        match self.path {
            GramPath::Host => {
                let rows = compute.read(rows).await?;
                self.gram.add_rows(&rows, n_rows);
                add_column_sums(&mut self.sum, &rows);
            }
            GramPath::DeviceF32 | GramPath::DeviceF64 => {
                let at_once = (compute.max_tensor_bytes / (4 * width * width)).clamp(1, 8) * ROWS_PER_BLOCK;
                // Whole blocks first, so that what is left is shorter than one.
                let whole = n_rows - n_rows % ROWS_PER_BLOCK;
                for (start, end) in (0..whole).step_by(at_once).map(|s| (s, (s + at_once).min(whole))) {
                    self.add_on_device(rows.clone().narrow(0, start, end - start), compute).await?;
                }
                if whole < n_rows {
                    self.add_on_device(rows.narrow(0, whole, n_rows - whole), compute).await?;
                }
            }
        }
        Ok(())
    }

    /// At most eight blocks: their sum in f32 costs less than a digit and spares reading each of them back.
    async fn add_on_device(&mut self, rows: Tensor<2>, compute: &Compute) -> Result<(), ComputeError> {
        let [n_rows, width] = rows.dims();
        let sums = compute.read(rows.clone().sum_dim(0)).await?;
        self.sum.iter_mut().zip(sums).for_each(|(total, sum)| *total += f64::from(sum));
        let product = if self.path != GramPath::DeviceF64 && n_rows % ROWS_PER_BLOCK == 0 {
            let blocks = rows.reshape([n_rows / ROWS_PER_BLOCK, ROWS_PER_BLOCK, width]);
            blocks.clone().swap_dims(1, 2).matmul(blocks).sum_dim(0).reshape([width, width])
        } else {
            self.path.product(rows.clone(), rows)
        };
        self.gram.add_block(&compute.read(product).await?);
        Ok(())
    }

    /// `ZᵀZ` and `Σ z`.
    pub fn finish(self) -> (Gram, Vec<f64>) {
        (self.gram.finish(), self.sum)
    }
}

/// Adds every row of `rows` to `sum`, which has as many elements as a row.
pub(crate) fn add_column_sums(sum: &mut [f64], rows: &[f32]) {
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(total, value)| *total += f64::from(*value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 9;
    /// Many blocks, and at the end less than one.
    const N_ROWS: usize = 40_000;

    /// Column `j` is scaled by `1e-4 … 1e4`, whatever `value` says of the rest.
    fn rows(mut value: impl FnMut(usize) -> f64) -> Vec<f32> {
        (0..N_ROWS * WIDTH).map(|at| (value(at % WIDTH) * 10f64.powi((at % WIDTH) as i32 - 4)) as f32).collect()
    }

    /// Like the hidden units of `ReLU`: of one sign, so that sums only grow.
    fn random_rows() -> Vec<f32> {
        let mut state = 7_u64;
        rows(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24)
        })
    }

    /// Every row is the same, of eight binary digits, scaled by powers of two over the same range. A product has sixteen
    /// digits then, so that a sum of 256 of them, or of less, is exact in the 24 of f32 in whatever order it is formed. In
    /// a longer sum every further term is rounded in the same direction: the worst there is for f32.
    fn constant_rows() -> Vec<f32> {
        let row: Vec<f32> = (0..WIDTH as i32).map(|j| (255 - 2 * j) as f32 * 2f32.powi(3 * (j - 4) - 7)).collect();
        row.repeat(N_ROWS)
    }

    /// `ZᵀZ` in f64, row-major, and `Σ z`.
    fn exact(rows: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let (mut gram, mut sum) = (vec![0.0; WIDTH * WIDTH], vec![0.0; WIDTH]);
        for row in rows.chunks_exact(WIDTH) {
            for (i, left) in row.iter().enumerate() {
                sum[i] += f64::from(*left);
                for (j, right) in row.iter().enumerate() {
                    gram[i * WIDTH + j] += f64::from(*left) * f64::from(*right);
                }
            }
        }
        (gram, sum)
    }

    /// Hands over `rows` in pieces of `rows_at_once`; gives the largest error of an entry relative to `√(G_ii G_jj)`, and
    /// that of a sum relative to itself.
    fn errors(rows: &[f32], path: GramPath, rows_at_once: usize) -> (f64, f64) {
        let compute = Compute::host();
        let mut sums = ActivationGram::new(WIDTH, path);
        for piece in rows.chunks(rows_at_once * WIDTH) {
            let tensor = compute.tensor(piece.to_vec(), [piece.len() / WIDTH, WIDTH]);
            pollster::block_on(sums.add(tensor, &compute)).expect("the host computes");
        }
        let ((gram, sum), (expected, expected_sum)) = (sums.finish(), exact(rows));
        let scale = |i: usize| expected[i * WIDTH + i].sqrt();
        let entries = (0..WIDTH).flat_map(|i| (0..WIDTH).map(move |j| (i, j)));
        let of_gram = entries.map(|(i, j)| (gram.get(i, j) - expected[i * WIDTH + j]).abs() / (scale(i) * scale(j)));
        let of_sum = sum.iter().zip(&expected_sum).map(|(found, expected)| (found / expected - 1.0).abs());
        (of_gram.fold(0.0, f64::max), of_sum.fold(0.0, f64::max))
    }

    #[test]
    fn ill_scaled_columns_are_summed_to_six_digits_on_every_path() {
        let rows = random_rows();
        for path in [GramPath::Host, GramPath::DeviceF32, GramPath::DeviceF64] {
            for rows_at_once in [N_ROWS, 2048, 300] {
                let (gram, sum) = errors(&rows, path, rows_at_once);
                assert!(gram <= 1e-6 && sum <= 1e-6, "{path:?}, {rows_at_once} at once: {gram:e}, {sum:e}");
            }
        }
    }

    /// With blocks of 300 rows the error would be 2e-6 on a processor with AVX-512, with 512 rows 8e-6.
    #[test]
    fn no_sum_in_f32_is_longer_than_a_block() {
        let rows = constant_rows();
        for path in [GramPath::Host, GramPath::DeviceF32] {
            for rows_at_once in [N_ROWS, 2048, 300] {
                let (gram, _) = errors(&rows, path, rows_at_once);
                assert!(gram <= 1e-12, "{path:?}, {rows_at_once} at once: {gram:e}");
            }
        }
    }
}
