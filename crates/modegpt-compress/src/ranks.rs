//! Ranks for maps that are factorised each by itself: within an exact budget, and none that would make a map larger.
//!
//! At rank `r` a map of `m` inputs and `n` outputs holds `r (m + n)` weights in place of `m n`. It therefore takes ranks
//! below `m n / (m + n)`, or stays dense; there is no other size between.

use std::collections::BTreeMap;

use modegpt_architecture::{FactorRanks, MapName, MapShape, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::{
    Error, ModelSummary, Rounding, Widths,
    allocation::check_sparsity,
    descent::{Offer, descend},
    model_summary::field_error,
};

/// Share of the block parameters by which ranks may miss the target.
const TOLERANCE: f64 = 0.005;

/// Errors of one map at the ranks that it can take. Dense it has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankCurve {
    /// Ascending, each of them smaller than the dense map.
    pub ranks: Vec<usize>,
    /// Error at each rank, in the unit of the plan.
    pub errors: Vec<f64>,
}

/// The curves of one layer; a map that no rank makes smaller has none.
pub type MapCurves = BTreeMap<MapName, RankCurve>;

impl RankCurve {
    /// # Errors
    /// [`Error::PlanField`] for a curve that no decomposition of `map` makes.
    fn check(&self, place: &str, map: &MapShape) -> Result<(), Error> {
        let ascending = self.ranks.is_sorted_by(|a, b| a < b) && self.ranks.first().is_some_and(|&rank| rank > 0);
        if !ascending || self.ranks.last().is_none_or(|&rank| rank > largest_rank(map)) {
            let expected = format!("ascending ranks up to {}", largest_rank(map));
            return Err(field_error(format!("{place}.ranks"), expected, "others"));
        }
        if self.errors.len() != self.ranks.len() || !self.errors.iter().all(|e| e.is_finite() && *e >= 0.0) {
            let expected = "one finite error of at least 0 for each rank";
            return Err(field_error(format!("{place}.errors"), expected, "others"));
        }
        Ok(())
    }
}

/// Weights of a map at a rank, or dense.
fn params(map: &MapShape, rank: Option<usize>) -> u64 {
    MapShape { rank, ..*map }.params() as u64
}

/// The largest rank at which a map holds fewer weights than dense; 0 if none does.
fn largest_rank(map: &MapShape) -> usize {
    (map.d_in * map.d_out - 1) / (map.d_in + map.d_out)
}

/// The ranks that a map may take: multiples of `multiple` that make it smaller, by at most `cap` of its weights.
pub fn rank_grid(map: &MapShape, multiple: usize, cap: f64) -> Vec<usize> {
    let most = largest_rank(map);
    let lowest = (1.0 - cap) * (map.d_in * map.d_out) as f64 / (map.d_in + map.d_out) as f64;
    let lowest = (lowest / multiple as f64).ceil().max(1.0) as usize;
    (lowest..=most / multiple).map(|n| n * multiple).collect()
}

/// Ranks of every layer for the given sparsities, every map of a layer giving the same share, so that the budget is met as
/// closely as possible.
///
/// Ranks are rounded down, and steps are then handed out by largest remainder while they bring the block parameters closer
/// to the target. The step from the largest rank leads to the dense map.
///
/// # Errors
/// [`Error::OutOfRange`] if the sparsities are not one for each layer, each in `[0, 1)`, or the multiple is zero;
/// [`Error::Unreachable`] if the lowest ranks leave over 0.5 % more weights than asked for.
pub fn round_ranks(config: &ModelConfig, sparsities: &[f64], rounding: Rounding) -> Result<Vec<FactorRanks>, Error> {
    rounding.check()?;
    if sparsities.len() != config.layers.len() {
        return Err(Error::out_of_range("sparsities", format!("{} of them", config.layers.len()), sparsities.len()));
    }
    let mut ladders = Vec::new();
    for (index, (shape, &sparsity)) in config.layers.iter().zip(sparsities).enumerate() {
        check_sparsity(&format!("sparsity of layer {index}"), sparsity)?;
        let maps = config.map_shapes(shape);
        ladders.extend(maps.map(|map| Ladder::below(index, map, rounding.rank, 1.0 - sparsity)));
    }
    let mut missing: f64 = ladders.iter().map(|ladder| ladder.ideal - ladder.params(ladder.at)).sum();
    while let Some((index, at)) = best_step(&ladders, missing) {
        missing -= ladders[index].params(at) - ladders[index].params(ladders[index].at);
        ladders[index].at = at;
    }
    let total = config.block_params() as f64;
    if -missing > TOLERANCE * total {
        let asked = 1.0 - ladders.iter().map(|ladder| ladder.ideal).sum::<f64>() / total;
        return Err(unreachable(asked, -missing / total));
    }
    let mut ranks = vec![FactorRanks::default(); config.layers.len()];
    for ladder in &ladders {
        ranks[ladder.layer].set(ladder.map.name, ladder.rank(ladder.at));
    }
    Ok(ranks)
}

/// The sizes of one map, and at which of them it stands.
struct Ladder {
    layer: usize,
    map: MapShape,
    ranks: Vec<usize>,
    /// Position in `ranks`; behind the last it is dense.
    at: usize,
    /// Weights that it should have.
    ideal: f64,
}

impl Ladder {
    /// At the largest size that keeps at most `keep` of the weights, or the lowest of all.
    fn below(layer: usize, map: MapShape, multiple: usize, keep: f64) -> Self {
        let (ranks, ideal) = (rank_grid(&map, multiple, 1.0), keep * params(&map, None) as f64);
        let mut ladder = Self { layer, map, ranks, at: 0, ideal };
        while ladder.at < ladder.ranks.len() && ladder.params(ladder.at + 1) <= ideal {
            ladder.at += 1;
        }
        ladder
    }

    fn rank(&self, at: usize) -> Option<usize> {
        self.ranks.get(at).copied()
    }

    fn params(&self, at: usize) -> f64 {
        params(&self.map, self.rank(at)) as f64
    }
}

/// The ladder with the largest remainder whose next size brings `missing` closer to zero, and that size.
fn best_step(ladders: &[Ladder], missing: f64) -> Option<(usize, usize)> {
    let mut best: Option<(f64, usize, usize)> = None;
    for (index, ladder) in ladders.iter().enumerate() {
        let next = if missing > 0.0 { Some(ladder.at + 1) } else { ladder.at.checked_sub(1) };
        let Some(next) = next.filter(|&next| next <= ladder.ranks.len()) else { continue };
        let step = ladder.params(next) - ladder.params(ladder.at);
        // Closer than before exactly if the step is less than twice what is missing.
        if step.abs() >= 2.0 * missing.abs() {
            continue;
        }
        let remainder = (ladder.ideal - ladder.params(ladder.at)) / step;
        if best.is_none_or(|(largest, ..)| remainder > largest) {
            best = Some((remainder, index, next));
        }
    }
    best.map(|(_, index, next)| (index, next))
}

/// The ranks at which the errors of all maps together are least, for a share `sparsity` of the linear weights removed.
///
/// # Errors
/// [`Error::Unreachable`] if the lowest ranks of the curves leave over 0.5 % more weights than asked for.
pub(crate) fn allocate_ranks(
    model: &ModelSummary,
    curves: &[MapCurves],
    sparsity: f64,
) -> Result<Vec<FactorRanks>, Error> {
    let (mut offers, mut maps) = (Vec::new(), Vec::new());
    for (layer, (curves, widths)) in curves.iter().zip(&model.widths).enumerate() {
        for map in model.maps(*widths) {
            let Some(curve) = curves.get(&map.name) else { continue };
            let sizes = curve.ranks.iter().copied().map(Some).chain([None]);
            let errors = curve.errors.iter().copied().chain([0.0]).collect();
            offers.push(Offer { params: sizes.map(|rank| params(&map, rank)).collect(), errors });
            maps.push((layer, map.name, curve));
        }
    }
    let total = model.block_params() as f64;
    let (sizes, excess) = descend(&offers, sparsity * total);
    if excess > TOLERANCE * total {
        return Err(unreachable(sparsity, excess / total));
    }
    let mut ranks = vec![FactorRanks::default(); model.widths.len()];
    for (&(layer, name, curve), &size) in maps.iter().zip(&sizes) {
        ranks[layer].set(name, curve.ranks.get(size).copied());
    }
    Ok(ranks)
}

fn unreachable(asked: f64, left: f64) -> Error {
    let reachable = format!("the ranks allowed remove at most {:.4}", asked - left);
    Error::Unreachable { name: "sparsity", asked: asked.to_string(), reachable }
}

/// Sum over all maps of the errors at these ranks, where the curves know them.
pub(crate) fn predicted_at_ranks(curves: &[MapCurves], ranks: &[FactorRanks]) -> f64 {
    let of_map = |curves: &MapCurves, ranks: &FactorRanks, name: MapName| {
        let Some(rank) = ranks.get(name) else { return 0.0 };
        let curve = curves.get(&name);
        let at = curve.and_then(|curve| Some((curve, curve.ranks.binary_search(&rank).ok()?)));
        at.map_or(f64::NAN, |(curve, at)| curve.errors[at])
    };
    let layers = curves.iter().zip(ranks);
    layers.flat_map(|(curves, ranks)| MapName::ALL.map(|name| of_map(curves, ranks, name))).sum()
}

impl ModelSummary {
    /// The dense maps of a block with the given widths.
    pub(crate) fn maps(&self, widths: Widths) -> impl Iterator<Item = MapShape> {
        let Widths { d_ff, d_qk, d_v } = widths;
        let d = self.d_model;
        let sizes = [
            (MapName::Query, d, self.n_heads * d_qk),
            (MapName::Key, d, self.n_kv_heads * d_qk),
            (MapName::Value, d, self.n_kv_heads * d_v),
            (MapName::Output, self.n_heads * d_v, d),
            (MapName::Gate, d, d_ff),
            (MapName::Up, d, d_ff),
            (MapName::Down, d_ff, d),
        ];
        let has_gate = self.gated_mlp;
        let maps = sizes.into_iter().filter(move |(name, ..)| has_gate || *name != MapName::Gate);
        maps.map(|(name, d_in, d_out)| MapShape { name, d_in, d_out, bias: false, rank: None })
    }

    /// Linear weights of a block with the given widths, whose maps are held at the given ranks.
    pub fn params_at(&self, widths: Widths, ranks: &FactorRanks) -> u64 {
        self.maps(widths).map(|map| params(&map, ranks.get(map.name))).sum()
    }

    /// Each rank at least 1, and none that would make its map larger.
    pub(crate) fn check_ranks(&self, place: &str, widths: Widths, ranks: &FactorRanks) -> Result<(), Error> {
        if ranks.gate.is_some() && !self.gated_mlp {
            return Err(field_error(format!("{place}.ranks.gate"), "none, since the MLP has no gate", "a rank"));
        }
        for map in self.maps(widths) {
            let Some(rank) = ranks.get(map.name) else { continue };
            if !(1..=map.break_even_rank()).contains(&rank) {
                let expected = format!("1 to {}, above which the map would grow, or null", map.break_even_rank());
                return Err(field_error(format!("{place}.ranks.{}", map.name), expected, rank));
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::PlanField`] for curves that are not those of a layer with the widths `present`.
    pub(crate) fn check_map_curves(&self, place: &str, widths: Widths, curves: &MapCurves) -> Result<(), Error> {
        for (name, curve) in curves {
            let Some(map) = self.maps(widths).find(|map| map.name == *name) else {
                return Err(field_error(format!("{place}.{name}"), "none, since there is no such map", "a curve"));
            };
            curve.check(&format!("{place}.{name}"), &map)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
