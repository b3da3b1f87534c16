//! What the user asks for, as a sparsity of the decoder blocks.

use crate::{Error, allocation::check_sparsity};

/// How small the model shall become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This share of the linear weights of the decoder blocks is removed, in `[0, 1)`.
    Sparsity(f64),
    /// The whole model keeps this many parameters.
    Params(u64),
    /// The weights of the whole model take this many bytes.
    Bytes(u64),
}

/// What a model is made of. The linear weights of its decoder blocks can shrink, the rest stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSize {
    /// Linear weights of all decoder blocks, biases and norms not counted.
    pub block_params: u64,
    /// All other parameters: embeddings, head, norms, biases. Biases that shrink with a width are counted in full, so
    /// the model comes out smaller than asked by their share, well below 0.1 %.
    pub other_params: u64,
    /// Bytes of each linear weight as it will be written.
    pub bytes_per_param: u64,
    /// Bytes of all other parameters as they will be written.
    pub other_bytes: u64,
}

impl Target {
    /// The share of the linear weights of the decoder blocks that has to go, in `[0, 1)`.
    ///
    /// ```text
    /// sparsity = 1 - (asked - other) / block        in parameters or in bytes
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a sparsity outside `[0, 1)`; [`Error::Unreachable`] with the range that can be reached
    /// if the asked size exceeds the model's, or leaves nothing for the decoder blocks.
    ///
    /// # Examples
    /// ```
    /// use modegpt_compress::{ModelSize, Target};
    ///
    /// let size = ModelSize { block_params: 1000, other_params: 500, bytes_per_param: 2, other_bytes: 1000 };
    /// assert_eq!(Target::Params(1250).sparsity(&size)?, 0.25);
    /// assert_eq!(Target::Bytes(2500).sparsity(&size)?, 0.25);
    /// # Ok::<(), modegpt_compress::Error>(())
    /// ```
    pub fn sparsity(&self, size: &ModelSize) -> Result<f64, Error> {
        match *self {
            Self::Sparsity(sparsity) => check_sparsity("sparsity", sparsity).map(|()| sparsity),
            Self::Params(params) => removed_share("parameters", params, size.other_params, size.block_params),
            Self::Bytes(bytes) => {
                let block_bytes = size.block_params.saturating_mul(size.bytes_per_param);
                removed_share("bytes", bytes, size.other_bytes, block_bytes)
            }
        }
    }
}

fn removed_share(name: &'static str, asked: u64, other: u64, block: u64) -> Result<f64, Error> {
    let total = other.saturating_add(block);
    if asked <= other || asked > total {
        let reachable = format!("outside the decoder blocks lie {other} {name}, the whole model has {total}");
        return Err(Error::Unreachable { name, asked: asked.to_string(), reachable });
    }
    let removed = total - asked;
    Ok((removed as f64 / block as f64).min(1.0 - f64::EPSILON))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ModelSize =
        ModelSize { block_params: 84_934_656, other_params: 40_304_640, bytes_per_param: 2, other_bytes: 80_609_280 };

    #[test]
    fn sizes_and_sparsities_agree() {
        for sparsity in [0.0, 0.1, 0.3, 0.9] {
            let kept = ((1.0 - sparsity) * SIZE.block_params as f64).round() as u64;
            let params = Target::Params(SIZE.other_params + kept).sparsity(&SIZE).expect("reachable");
            let bytes = Target::Bytes(SIZE.other_bytes + 2 * kept).sparsity(&SIZE).expect("reachable");
            assert!((params - sparsity).abs() < 1e-7 && (bytes - sparsity).abs() < 1e-7, "{params}, {bytes}");
            assert!((Target::Sparsity(sparsity).sparsity(&SIZE).expect("in range") - sparsity).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn unreachable_sizes_say_what_is_reachable() {
        let message = |target: Target| target.sparsity(&SIZE).expect_err("unreachable").to_string();
        assert_eq!(
            message(Target::Params(40_304_640)),
            "parameters 40304640 cannot be reached: outside the decoder blocks lie 40304640 parameters, the whole model has 125239296"
        );
        assert!(message(Target::Params(125_239_297)).contains("125239296"));
        assert!(message(Target::Bytes(1)).contains("80609280 bytes"));
        for sparsity in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            assert!(message(Target::Sparsity(sparsity)).contains("[0, 1)"));
        }
    }

    #[test]
    fn extreme_sizes_do_not_overflow() {
        let size = ModelSize { block_params: u64::MAX, other_params: u64::MAX, bytes_per_param: 4, other_bytes: 7 };
        Target::Params(5).sparsity(&size).expect_err("below the rest");
        assert!(Target::Bytes(8).sparsity(&size).expect("reachable") < 1.0);
        let empty = ModelSize { block_params: 0, other_params: 5, bytes_per_param: 4, other_bytes: 20 };
        Target::Params(5).sparsity(&empty).expect_err("nothing to compress");
    }
}
