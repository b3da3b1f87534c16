//! How much of each layer to remove.
//!
//! Layers that turn the residual stream little (low block influence `s`) give more. With the mean sparsity `φ` given
//! and an entropy that keeps the allocation from falling on few layers, the optimum is a softmax, here with a cap:
//!
//! ```text
//! φ_i = min(cap, τ exp(-s_i / ε))      τ such that  Σ p_i φ_i = φ Σ p_i
//! ```
//!
//! where `p_i` are the parameters of layer `i`. Equations 10 and 11 of the paper
//! ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)), which has neither the cap nor the weights.

use crate::Error;

/// The same sparsity for every layer.
///
/// # Errors
/// [`Error::OutOfRange`] if `sparsity` is not in `[0, 1)`.
pub fn uniform(n_layers: usize, sparsity: f64) -> Result<Vec<f64>, Error> {
    check_sparsity("sparsity", sparsity)?;
    Ok(vec![sparsity; n_layers])
}

/// Sparsities by block influence: the capped softmax of the module documentation, exactly.
///
/// With the layers sorted by influence, the capped ones come first. Their number is the smallest for which the rest,
/// sharing what remains in proportion to `exp(-s_i / ε)`, stays within the cap; no iteration on `τ` is needed and the
/// weighted mean is met to rounding.
///
/// - `influences`: block influence of each layer
/// - `weights`: parameters of each layer
/// - `mean_sparsity`: share of all these parameters to remove, in `[0, 1)`, at most `cap`
/// - `epsilon`: temperature in units of block influence; `∞` gives the uniform allocation
/// - `cap`: largest sparsity of a layer, in `(0, 1)`
///
/// # Errors
/// [`Error::OutOfRange`] for an argument outside its range, [`Error::Unreachable`] if `mean_sparsity` exceeds `cap`.
///
/// # Examples
/// ```
/// use modegpt_compress::capped_softmax;
///
/// let influences = [0.0, 2f64.ln(), 2f64.ln()];
/// assert_eq!(capped_softmax(&influences, &[1, 1, 1], 0.25, 1.0, 0.9)?, [0.375, 0.1875, 0.1875]);
/// # Ok::<(), modegpt_compress::Error>(())
/// ```
pub fn capped_softmax(
    influences: &[f64],
    weights: &[u64],
    mean_sparsity: f64,
    epsilon: f64,
    cap: f64,
) -> Result<Vec<f64>, Error> {
    check_layers(influences, weights)?;
    check_sparsity("sparsity", mean_sparsity)?;
    check_epsilon(epsilon)?;
    if !(cap > 0.0 && cap < 1.0) {
        return Err(Error::out_of_range("cap", "a number in (0, 1)", cap));
    }
    if mean_sparsity > cap {
        let reachable = format!("no layer may exceed the cap of {cap}");
        return Err(Error::Unreachable { name: "sparsity", asked: mean_sparsity.to_string(), reachable });
    }
    let mut order: Vec<usize> = (0..influences.len()).collect();
    order.sort_by(|&a, &b| influences[a].total_cmp(&influences[b]));
    let mut sparsities = vec![cap; influences.len()];
    let mut to_remove = mean_sparsity * total(weights);
    for n_capped in 0..order.len() {
        let uncapped = &order[n_capped..];
        let shares = boltzmann(influences, uncapped, epsilon);
        let largest =
            to_remove / uncapped.iter().zip(&shares).map(|(&i, share)| weights[i] as f64 * share).sum::<f64>();
        if largest <= cap {
            for (&layer, share) in uncapped.iter().zip(&shares) {
                sparsities[layer] = largest * share;
            }
            break;
        }
        to_remove -= cap * weights[order[n_capped]] as f64;
    }
    Ok(sparsities)
}

/// The `epsilon` at which the most compressed layer has sparsity `largest` when the mean is `reference_sparsity`.
///
/// The paper chooses `ε` by the sparsities it produces: in its Llama-2-7B run at 30 % one layer reaches 82 %. The largest
/// sparsity falls with `ε`, so bisection on `ln ε` finds it. Where no `ε` reaches `largest`, since the layers are few or
/// several share the lowest influence, the aim is halfway between `reference_sparsity` and the largest that is
/// reached; where all influences are equal every `ε` gives the same and 1 is returned.
///
/// # Errors
/// [`Error::OutOfRange`] unless `0 < reference_sparsity < largest < 1`, or if the layers' numbers are unusable.
pub fn epsilon_for_largest(
    influences: &[f64],
    weights: &[u64],
    reference_sparsity: f64,
    largest: f64,
) -> Result<f64, Error> {
    check_layers(influences, weights)?;
    if !(reference_sparsity > 0.0 && reference_sparsity < largest && largest < 1.0) {
        let found = format!("{reference_sparsity} and {largest}");
        return Err(Error::out_of_range("reference and largest sparsity", "0 < reference < largest < 1", found));
    }
    let lowest = influences.iter().copied().fold(f64::INFINITY, f64::min);
    let spread = influences.iter().copied().fold(0.0, |spread: f64, influence| spread.max(influence - lowest));
    if spread == 0.0 {
        return Ok(1.0);
    }
    let all: Vec<usize> = (0..influences.len()).collect();
    let largest_at = |log_epsilon: f64| {
        let shares = boltzmann(influences, &all, log_epsilon.exp());
        let weighted: f64 = shares.iter().zip(weights).map(|(share, &weight)| share * weight as f64).sum();
        reference_sparsity * total(weights) / weighted
    };
    // The factors e^±50 cover every spread that f64 resolves.
    let (mut low, mut high) = (spread.ln() - 50.0, spread.ln() + 50.0);
    let reachable = largest_at(low);
    let aim = if largest < reachable { largest } else { f64::midpoint(reference_sparsity, reachable) };
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if largest_at(middle) > aim {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(high.exp())
}

/// `exp(-(s_i - min s) / ε)` of the chosen layers; the largest is 1, so nothing overflows.
fn boltzmann(influences: &[f64], layers: &[usize], epsilon: f64) -> Vec<f64> {
    let lowest = layers.iter().map(|&layer| influences[layer]).fold(f64::INFINITY, f64::min);
    layers.iter().map(|&layer| (-(influences[layer] - lowest) / epsilon).exp()).collect()
}

fn total(weights: &[u64]) -> f64 {
    weights.iter().map(|&weight| weight as f64).sum()
}

pub(crate) fn check_sparsity(name: &str, sparsity: f64) -> Result<(), Error> {
    if (0.0..1.0).contains(&sparsity) {
        return Ok(());
    }
    Err(Error::out_of_range(name, "a number in [0, 1)", sparsity))
}

fn check_epsilon(epsilon: f64) -> Result<(), Error> {
    // The smallest normal number, so that dividing zero by it stays zero and nothing becomes NaN.
    if epsilon >= f64::MIN_POSITIVE {
        return Ok(());
    }
    Err(Error::out_of_range("epsilon", "a positive number", epsilon))
}

fn check_layers(influences: &[f64], weights: &[u64]) -> Result<(), Error> {
    if influences.is_empty() || influences.len() != weights.len() {
        let found = format!("{} and {}", influences.len(), weights.len());
        return Err(Error::out_of_range("influences and weights", "one of each for every layer", found));
    }
    if let Some(layer) = influences.iter().position(|influence| !influence.is_finite()) {
        return Err(Error::out_of_range(
            format!("block influence of layer {layer}"),
            "a finite number",
            influences[layer],
        ));
    }
    match weights.iter().position(|&weight| weight == 0) {
        Some(layer) => Err(Error::out_of_range(format!("parameters of layer {layer}"), "at least 1", 0)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn weighted_mean(sparsities: &[f64], weights: &[u64]) -> f64 {
        sparsities.iter().zip(weights).map(|(s, &w)| s * w as f64).sum::<f64>() / total(weights)
    }

    #[test]
    fn every_mean_is_met_and_the_form_is_a_capped_softmax() {
        let mut random = Random::new(1);
        for trial in 0..500 {
            let n_layers = 1 + trial % 40;
            let influences: Vec<f64> = (0..n_layers).map(|_| random.uniform()).collect();
            let weights: Vec<u64> = (0..n_layers).map(|_| 1 + random.below(1_000_000) as u64).collect();
            let cap = 0.3 + 0.69 * random.uniform();
            let mean = cap * random.uniform();
            let epsilon = (random.uniform() * 30.0 - 20.0).exp();
            let sparsities = capped_softmax(&influences, &weights, mean, epsilon, cap).expect("in range");
            assert!(
                (weighted_mean(&sparsities, &weights) - mean).abs() < 1e-12,
                "{n_layers} layers, epsilon {epsilon}"
            );
            assert!(sparsities.iter().all(|s| (0.0..=cap).contains(s)));
            for (a, b) in (0..n_layers).flat_map(|a| (0..n_layers).map(move |b| (a, b))) {
                assert!(influences[a] > influences[b] || sparsities[a] >= sparsities[b]);
                // Where neither the cap nor the smallest numbers interfere, the ratio is that of a softmax.
                if [a, b].iter().all(|&layer| (1e-200..cap).contains(&sparsities[layer])) {
                    let expected = (influences[b] - influences[a]) / epsilon;
                    let found = (sparsities[a] / sparsities[b]).ln();
                    assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn caps_bind_as_a_hand_calculation_says() {
        // Uncapped: 2 * 0.6 * (2/3, 1/3) = (0.8, 0.4). Capped at 0.7 the second takes the rest.
        let sparsities = capped_softmax(&[0.0, 2f64.ln()], &[1, 1], 0.6, 1.0, 0.7).expect("in range");
        assert!((sparsities[0] - 0.7).abs() < 1e-15 && (sparsities[1] - 0.5).abs() < 1e-15, "{sparsities:?}");
    }

    #[test]
    fn a_huge_epsilon_is_uniform_and_a_tiny_one_fills_layer_by_layer() {
        let influences = [0.3, 0.1, 0.2];
        assert_eq!(capped_softmax(&influences, &[5, 5, 5], 0.3, f64::INFINITY, 0.9).expect("in range"), [0.3; 3]);
        let steep = capped_softmax(&influences, &[5, 5, 5], 0.4, 1e-300, 0.9).expect("in range");
        assert!((steep[1] - 0.9).abs() < 1e-15 && (steep[2] - 0.3).abs() < 1e-12 && steep[0] == 0.0, "{steep:?}");
        assert_eq!(capped_softmax(&[0.1, 0.1], &[1, 1], 0.9, 0.1, 0.9).expect("in range"), [0.9; 2]);
    }

    #[test]
    fn unusable_arguments_are_refused() {
        let refused = |influences: &[f64], weights: &[u64], mean, epsilon, cap| {
            capped_softmax(influences, weights, mean, epsilon, cap).expect_err("must be refused").to_string()
        };
        assert_eq!(
            refused(&[0.1], &[1], 0.5, 0.1, 0.4),
            "sparsity 0.5 cannot be reached: no layer may exceed the cap of 0.4"
        );
        assert!(refused(&[f64::NAN], &[1], 0.1, 0.1, 0.4).starts_with("block influence of layer 0"));
        assert!(refused(&[0.1, 0.2], &[1, 0], 0.1, 0.1, 0.4).starts_with("parameters of layer 1"));
        for (mean, epsilon, cap) in
            [(1.0, 0.1, 0.9), (f64::NAN, 0.1, 0.9), (0.1, 0.0, 0.9), (0.1, f64::NAN, 0.9), (0.1, 0.1, 1.0)]
        {
            refused(&[0.1], &[1], mean, epsilon, cap);
        }
        refused(&[], &[], 0.1, 0.1, 0.9);
        refused(&[0.1], &[1, 2], 0.1, 0.1, 0.9);
    }

    #[test]
    fn epsilon_makes_the_largest_sparsity_what_was_asked() {
        let mut random = Random::new(2);
        for n_layers in [4, 12, 31, 80] {
            let influences: Vec<f64> = (0..n_layers).map(|_| random.uniform()).collect();
            let weights = vec![7; n_layers];
            let epsilon = epsilon_for_largest(&influences, &weights, 0.3, 0.8).expect("in range");
            let sparsities = capped_softmax(&influences, &weights, 0.3, epsilon, 0.99).expect("in range");
            let largest = sparsities.iter().copied().fold(0.0, f64::max);
            assert!((largest - 0.8).abs() < 1e-9, "{n_layers} layers: {largest}");
        }
    }

    #[test]
    fn too_few_layers_get_half_of_what_is_reachable() {
        let epsilon = epsilon_for_largest(&[0.2, 0.1], &[1, 1], 0.3, 0.8).expect("in range");
        let sparsities = capped_softmax(&[0.2, 0.1], &[1, 1], 0.3, epsilon, 0.99).expect("in range");
        assert!((sparsities[1] - 0.45).abs() < 1e-9, "{sparsities:?}");
        assert!((epsilon_for_largest(&[0.2; 3], &[1; 3], 0.3, 0.8).expect("in range") - 1.0).abs() < f64::EPSILON);
    }
}
