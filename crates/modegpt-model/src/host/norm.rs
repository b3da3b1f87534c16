//! Normalisation of rows in place.

use modegpt_architecture::Norm;

use super::in_parts;

/// Rows that one thread takes at once.
const ROWS: usize = 32;
/// Sums run in as many lanes, which any processor adds at once.
const LANES: usize = 16;

/// Normalises every row of `x`, as wide as `weight` and `bias`, of which either may be absent.
pub(crate) fn normalise(x: &mut [f32], width: usize, kind: Norm, weight: Option<&[f32]>, bias: Option<&[f32]>) {
    in_parts(x, ROWS * width, |_, rows| {
        for row in rows.chunks_exact_mut(width) {
            standardise(row, kind);
            if let Some(weight) = weight {
                row.iter_mut().zip(weight).for_each(|(x, weight)| *x *= weight);
            }
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
    });
}

fn standardise(row: &mut [f32], kind: Norm) {
    let n = row.len() as f32;
    let eps = match kind {
        Norm::Layer { eps } => {
            let mean = sum(row, |x| x) / n;
            for x in &mut *row {
                *x -= mean;
            }
            eps
        }
        Norm::Rms { eps } => eps,
    };
    let scale = 1.0 / (sum(row, |x| x * x) / n + eps as f32).sqrt();
    for x in row {
        *x *= scale;
    }
}

fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (parts, rest) = row.as_chunks::<LANES>();
    for part in parts {
        lanes.iter_mut().zip(part).for_each(|(lane, x)| *lane += of(*x));
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}
