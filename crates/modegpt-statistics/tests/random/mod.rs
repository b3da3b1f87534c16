//! Numbers for values to be made of.

use modegpt_linalg::Gram;

/// Numbers in `[0, 1)`, the same everywhere (`SplitMix64`).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn vector(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.uniform()).collect()
    }

    pub(crate) fn gram(&mut self, dim: usize) -> Gram {
        Gram::from_packed_lower(dim, self.vector(dim * (dim + 1) / 2)).expect("a whole triangle")
    }

    pub(crate) fn grams(&mut self, n: usize, dim: usize) -> Vec<Gram> {
        (0..n).map(|_| self.gram(dim)).collect()
    }
}
