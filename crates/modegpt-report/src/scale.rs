//! From values to places in a figure.

use crate::number;

/// How values are laid out along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Linear,
    Log,
}

/// Maps a range of values onto a range of places; either may run backwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    kind: Kind,
    from: (f64, f64),
    to: (f64, f64),
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    pub(crate) at: f64,
    pub(crate) label: String,
}

impl Scale {
    /// A scale that shows all `values`, with a little air around them; values that it cannot show are left out of the
    /// reckoning. `None` if nothing remains.
    pub(crate) fn over(kind: Kind, values: impl IntoIterator<Item = f64>, to: (f64, f64)) -> Option<Self> {
        let shown = values.into_iter().filter(|value| kind.shows(*value)).map(|value| kind.forward(value));
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return None;
        }
        // All values equal: a range around them, so that nothing is divided by zero.
        let air = if high > low { 0.06 * (high - low) } else { 0.05 * low.abs().max(1.0) };
        Some(Self { kind, from: (low - air, high + air), to })
    }

    /// A linear scale over exactly this range.
    pub(crate) fn exact(from: (f64, f64), to: (f64, f64)) -> Self {
        Self { kind: Kind::Linear, from, to }
    }

    /// Where `value` goes; `None` if the scale cannot show it.
    pub(crate) fn place(&self, value: f64) -> Option<f64> {
        self.kind.shows(value).then(|| {
            let share = (self.kind.forward(value) - self.from.0) / (self.from.1 - self.from.0);
            self.to.0 + share * (self.to.1 - self.to.0)
        })
    }

    /// Round values inside the range, about `n` of them.
    pub(crate) fn ticks(&self, n: usize) -> Vec<Tick> {
        let (low, high) = (self.kind.backward(self.from.0), self.kind.backward(self.from.1));
        let is_log = self.kind == Kind::Log && high / low > 4.0;
        let values = if is_log { log_ticks(low, high, n) } else { linear_ticks(low, high, n) };
        // Along a logarithmic axis neighbours are far apart: each label has the decimals that it needs itself.
        let step = if is_log { f64::INFINITY } else { smallest_step(&values) };
        values.into_iter().map(|at| Tick { at, label: label(at, step) }).collect()
    }
}

impl Kind {
    fn shows(self, value: f64) -> bool {
        value.is_finite() && (self == Self::Linear || value > 0.0)
    }

    fn forward(self, value: f64) -> f64 {
        if self == Self::Log { value.ln() } else { value }
    }

    fn backward(self, value: f64) -> f64 {
        if self == Self::Log { value.exp() } else { value }
    }
}

fn smallest_step(values: &[f64]) -> f64 {
    values.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min)
}

/// Multiples of 1, 2, 2.5 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, n: usize) -> Vec<f64> {
    let raw = (high - low) / n.max(1) as f64;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|step| *step >= raw);
    let step = step.unwrap_or(10.0 * magnitude);
    if !(step.is_finite() && step > 0.0) {
        return vec![low];
    }
    let first = (low / step).ceil() as i64;
    (0..=2 * n as i64 + 2).map(|i| (first + i) as f64 * step).take_while(|v| *v <= high).collect()
}

/// Powers of ten, with 2 and 5 or with 3 between them where there is room.
fn log_ticks(low: f64, high: f64, n: usize) -> Vec<f64> {
    let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let with = |between: &[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|d| between.iter().map(move |m| m * 10f64.powi(d)));
        all.filter(|v| *v >= low && *v <= high).collect()
    };
    for between in [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]] {
        let ticks = with(between);
        if ticks.len() <= n + 2 {
            return ticks;
        }
    }
    let all = with(&[1.0]);
    let every = all.len().div_ceil(n.max(1));
    all.into_iter().step_by(every.max(1)).collect()
}

/// With as many decimals as tell neighbours apart.
fn label(value: f64, step: f64) -> String {
    if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
        return number::scientific(value);
    }
    let is_whole = |value: f64| (value - value.round()).abs() < 1e-6;
    let enough = |digits: &i32| is_whole(value * 10f64.powi(*digits)) && is_whole(step * 10f64.powi(*digits));
    let steps = if step.is_finite() { (0..4).find(enough) } else { (0..4).find(|d| is_whole(value * 10f64.powi(*d))) };
    number::decimals(value, steps.unwrap_or(4) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(kind: Kind, low: f64, high: f64, n: usize) -> Vec<String> {
        let scale = Scale::over(kind, [low, high], (0.0, 1.0)).expect("a range");
        scale.ticks(n).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn places_run_from_end_to_end() {
        let scale = Scale::exact((0.0, 10.0), (100.0, 0.0));
        assert_eq!((scale.place(0.0), scale.place(5.0), scale.place(f64::NAN)), (Some(100.0), Some(50.0), None));
        let log = Scale::over(Kind::Log, [1.0, 100.0], (0.0, 1.0)).expect("a range");
        assert!((log.place(10.0).expect("shown") - 0.5).abs() < 1e-12);
        assert_eq!((log.place(0.0), log.place(-1.0)), (None, None));
    }

    #[test]
    fn nothing_and_single_values_have_no_empty_range() {
        assert_eq!(Scale::over(Kind::Log, [0.0, f64::NAN], (0.0, 1.0)), None);
        assert_eq!(Scale::over(Kind::Linear, [], (0.0, 1.0)), None);
        for kind in [Kind::Linear, Kind::Log] {
            for value in [1.0, 13.7, 1e-9, 5e8] {
                let scale = Scale::over(kind, [value], (0.0, 1.0)).expect("one value");
                assert!((scale.place(value).expect("shown") - 0.5).abs() < 1e-9, "{value}");
                assert!(scale.ticks(4).iter().all(|tick| tick.at.is_finite()), "{value}");
            }
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(Kind::Linear, 0.0, 1.0, 4), ["0.0", "0.5", "1.0"]);
        assert_eq!(labels(Kind::Linear, 310.0, 520.0, 4), ["300", "400", "500"]);
        assert_eq!(labels(Kind::Log, 22.0, 260.0, 5), ["20", "50", "100", "200"]);
        assert_eq!(labels(Kind::Log, 20.0, 3e6, 5), ["10", "100", "1000", "10,000", "10⁵", "10⁶"]);
        assert_eq!(labels(Kind::Log, 2e-6, 0.3, 4), ["10⁻⁶", "10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1"]);
        assert_eq!(labels(Kind::Log, 13.7, 15.1, 4), ["14.0", "14.5", "15.0"]);
    }
}
