//! From sparsities to widths that hardware likes, without missing the target.
//!
//! Kernels want widths that are multiples of 8 or 64; a narrow odd width can even be slower than the dense one.
//! Rounding each width by itself would miss the asked sparsity, so what the heads leave over goes to the MLP of the same
//! layer, and what the MLPs leave over is handed out over the layers.

use std::fmt;

use modegpt_architecture::ModelConfig;
use serde::{Deserialize, Serialize};

use crate::{Error, ModelSummary, Widths, allocation::check_sparsity};

/// Share of the block parameters by which rounding may miss the target before head widths are touched again.
const TOLERANCE: f64 = 0.005;

/// Widths are rounded to multiples of these. The full width is allowed even where it is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounding {
    /// Hidden units of the MLP come in multiples of this, at least 1.
    pub ff: usize,
    /// Head widths come in multiples of this, at least 1. With rotary positions an odd one is doubled for `d_qk`.
    pub head: usize,
    /// Ranks of maps that become products come in multiples of this, at least 1.
    #[serde(default = "usual_rank")]
    pub rank: usize,
}

/// What kernels like.
fn usual_rank() -> usize {
    8
}

impl Rounding {
    /// Multiples of 64 and 8 for models of real size. Narrower models get finer steps: the largest power of two that is
    /// at most `d_ff / 24` and `d_head / 8`, the latter at least 2 where positions are rotary, and for ranks `d_model / 24`.
    pub fn default_for(config: &ModelConfig) -> Self {
        let d_ff = config.layers.iter().map(|shape| shape.d_ff).min().unwrap_or(1);
        let head = power_of_two_up_to(config.d_head / 8, 8);
        let head = if config.is_rotary() { head.max(2) } else { head };
        let rank = power_of_two_up_to(config.d_model / 24, usual_rank());
        Self { ff: power_of_two_up_to(d_ff / 24, 64), head, rank }
    }

    pub(crate) fn check(self) -> Result<(), Error> {
        if self.ff == 0 || self.head == 0 || self.rank == 0 {
            return Err(Error::out_of_range("rounding", "multiples of at least 1", self.to_string()));
        }
        Ok(())
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for d_ff, {} for heads and {} for ranks", self.ff, self.head, self.rank)
    }
}

/// Widths of every layer for the given sparsities, so that their parameter-weighted mean is met as closely as possible.
///
/// Head widths go to the nearest multiple. Each layer's remainder moves to its `d_ff`, which is rounded down, and steps
/// of `d_ff` are then handed out by largest remainder while they bring the block parameters closer to the target. Only
/// if every `d_ff` is exhausted and more than 0.5 % is still missing do head widths move, again one step at a time. At
/// the end no single step of a `d_ff` comes closer. No width falls below one multiple or exceeds the present one.
///
/// # Errors
/// [`Error::OutOfRange`] if the sparsities are not one for each layer, each in `[0, 1)`, or a multiple is zero.
pub fn round_widths(config: &ModelConfig, sparsities: &[f64], rounding: Rounding) -> Result<Vec<Widths>, Error> {
    rounding.check()?;
    if sparsities.len() != config.layers.len() {
        return Err(Error::out_of_range("sparsities", format!("{} of them", config.layers.len()), sparsities.len()));
    }
    for (layer, sparsity) in sparsities.iter().enumerate() {
        check_sparsity(&format!("sparsity of layer {layer}"), *sparsity)?;
    }
    let mut rounds = Rounds::new(&ModelSummary::of(config), sparsities, rounding);
    let tolerance = TOLERANCE * config.block_params() as f64;
    settle(&mut rounds.mlp, &mut rounds.missing);
    if rounds.missing.abs() > tolerance {
        settle(&mut rounds.heads, &mut rounds.missing);
        settle(&mut rounds.mlp, &mut rounds.missing);
    }
    Ok(rounds.widths())
}

/// All widths of a model on their ladders.
struct Rounds {
    /// `d_ff` of each layer.
    mlp: Vec<Ladder>,
    /// `d_qk` and `d_v` of each layer, in turn.
    heads: Vec<Ladder>,
    /// Parameters still to hand out; negative if the widths have too many.
    missing: f64,
}

impl Rounds {
    fn new(model: &ModelSummary, sparsities: &[f64], rounding: Rounding) -> Self {
        let mut rounds = Self { mlp: Vec::new(), heads: Vec::new(), missing: 0.0 };
        let is_odd_pair = model.rotary && !rounding.head.is_multiple_of(2);
        let qk_multiple = if is_odd_pair { 2 * rounding.head } else { rounding.head };
        for (dense, sparsity) in model.widths.iter().zip(sparsities) {
            let keep = 1.0 - sparsity;
            let target = keep * model.params(*dense) as f64;
            let d_qk = Ladder::nearest(keep * dense.d_qk as f64, dense.d_qk, qk_multiple, model.head_unit());
            let d_v = Ladder::nearest(keep * dense.d_v as f64, dense.d_v, rounding.head, model.head_unit());
            let for_mlp = target - d_qk.params() - d_v.params();
            let d_ff = Ladder::below(for_mlp / model.mlp_unit() as f64, dense.d_ff, rounding.ff, model.mlp_unit());
            rounds.missing += for_mlp - d_ff.params();
            rounds.mlp.push(d_ff);
            rounds.heads.extend([d_qk, d_v]);
        }
        rounds
    }

    fn widths(&self) -> Vec<Widths> {
        let layers = self.mlp.iter().zip(self.heads.chunks_exact(2));
        layers.map(|(mlp, heads)| Widths { d_ff: mlp.width, d_qk: heads[0].width, d_v: heads[1].width }).collect()
    }
}

/// Takes single steps, those with the largest remainder first, while they bring `missing` closer to zero.
fn settle(ladders: &mut [Ladder], missing: &mut f64) {
    while let Some((index, width)) = best_step(ladders, *missing) {
        *missing += ladders[index].params();
        ladders[index].width = width;
        *missing -= ladders[index].params();
    }
}

fn best_step(ladders: &[Ladder], missing: f64) -> Option<(usize, usize)> {
    let mut best: Option<(f64, usize, usize)> = None;
    for (index, ladder) in ladders.iter().enumerate() {
        let Some(width) = (if missing > 0.0 { ladder.up() } else { ladder.down() }) else { continue };
        let step = width as f64 - ladder.width as f64;
        // Closer than before exactly if the step is less than twice what is missing.
        if (step * ladder.unit as f64).abs() >= 2.0 * missing.abs() {
            continue;
        }
        let remainder = (ladder.ideal - ladder.width as f64) / step;
        if best.is_none_or(|(largest, ..)| remainder > largest) {
            best = Some((remainder, index, width));
        }
    }
    best.map(|(_, index, width)| (index, width))
}

/// A width that moves in steps of `multiple`, up to `dense`.
struct Ladder {
    width: usize,
    ideal: f64,
    dense: usize,
    multiple: usize,
    /// Parameters of each unit of width.
    unit: u64,
}

impl Ladder {
    /// At the highest allowed width that is not above `ideal`, or the lowest of all.
    fn below(ideal: f64, dense: usize, multiple: usize, unit: u64) -> Self {
        let width = if ideal >= dense as f64 {
            dense
        } else {
            let multiples = (ideal.max(0.0) / multiple as f64) as usize;
            (multiples.max(1) * multiple).min(dense)
        };
        Self { width, ideal, dense, multiple, unit }
    }

    /// At the allowed width nearest to `ideal`, the higher one of two.
    fn nearest(ideal: f64, dense: usize, multiple: usize, unit: u64) -> Self {
        let mut ladder = Self::below(ideal, dense, multiple, unit);
        if let Some(higher) = ladder.up().filter(|higher| *higher as f64 - ideal <= ideal - ladder.width as f64) {
            ladder.width = higher;
        }
        ladder
    }

    fn up(&self) -> Option<usize> {
        (self.width < self.dense).then(|| ((self.width / self.multiple + 1) * self.multiple).min(self.dense))
    }

    fn down(&self) -> Option<usize> {
        let lower = (self.width - 1) / self.multiple * self.multiple;
        (lower > 0).then_some(lower)
    }

    fn params(&self) -> f64 {
        (self.width as u64 * self.unit) as f64
    }
}

fn power_of_two_up_to(limit: usize, largest: usize) -> usize {
    1 << limit.clamp(1, largest).ilog2()
}

#[cfg(test)]
mod tests;
