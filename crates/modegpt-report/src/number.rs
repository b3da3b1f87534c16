//! Numbers as people read them.

use crate::Spread;

/// With three to four significant digits where that is readable, grouped or scientific where not.
pub(crate) fn plain(value: f64) -> String {
    decimals(value, digits_after(value))
}

/// `mean ± deviation`, both with the decimals of the mean.
pub(crate) fn spread(spread: Spread) -> (String, Option<String>) {
    let digits = digits_after(spread.mean);
    let deviation = spread.deviation.map(|deviation| decimals(deviation, digits));
    (decimals(spread.mean, digits), deviation)
}

fn digits_after(value: f64) -> usize {
    match value.abs() {
        a if a < 1.0 => 3,
        a if a < 100.0 => 2,
        a if a < 1000.0 => 1,
        _ => 0,
    }
}

/// With so many digits behind the point; in powers of ten from a million on.
pub(crate) fn decimals(value: f64, digits: usize) -> String {
    if value.abs() >= 1e6 {
        return scientific(value);
    }
    let text = format!("{value:.digits$}");
    match text.split_once('.') {
        Some((whole, rest)) => format!("{}.{rest}", group(whole)),
        None => group(&text),
    }
}

/// In powers of ten where decimals would be all zeros.
pub(crate) fn small(value: f64) -> String {
    if value == 0.0 || value.abs() >= 1e-3 { plain(value) } else { scientific(value) }
}

/// `2.3·10⁻⁵`, and `10⁶` for one of them.
pub(crate) fn scientific(value: f64) -> String {
    let text = format!("{value:.1e}").replace(".0e", "e").replacen('-', "−", usize::from(value < 0.0));
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let power = format!("10{}", superscript(exponent));
    if mantissa == "1" { power } else { format!("{mantissa}·{power}") }
}

/// `12345` as `12,345`.
pub(crate) fn grouped(value: u64) -> String {
    group(&value.to_string())
}

/// A share as percent, with a digit only where it says something.
pub(crate) fn percent(share: f64) -> String {
    let text = format!("{:.1}", 100.0 * share);
    format!("{}\u{202f}%", text.strip_suffix(".0").unwrap_or(&text))
}

/// A share as percent, always with one digit, to stand in a column.
pub(crate) fn share(share: f64) -> String {
    format!("{:.1}\u{202f}%", 100.0 * share)
}

/// Bytes in binary units.
pub(crate) fn bytes(bytes: u64) -> String {
    let (value, unit) = match bytes as f64 {
        b if b >= 1024f64.powi(3) => (b / 1024f64.powi(3), "GiB"),
        b if b >= 1024f64.powi(2) => (b / 1024f64.powi(2), "MiB"),
        b if b >= 1024.0 => (b / 1024.0, "KiB"),
        b => (b, "B"),
    };
    let digits = usize::from(value < 100.0 && unit != "B");
    format!("{}\u{202f}{unit}", decimals(value, digits))
}

/// Seconds, minutes or hours.
pub(crate) fn duration(secs: f64) -> String {
    match secs {
        s if s < 10.0 => format!("{s:.1}\u{202f}s"),
        s if s < 120.0 => format!("{s:.0}\u{202f}s"),
        s if s < 7200.0 => format!("{:.0}\u{202f}min", s / 60.0),
        s => format!("{:.1}\u{202f}h", s / 3600.0),
    }
}

/// The beginning of a hash, enough to tell it from others.
pub(crate) fn short_hash(hash: &str) -> String {
    hash.chars().take(12).collect()
}

fn group(whole: &str) -> String {
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("−", digits));
    // Four digits are read without help.
    if digits.len() < 5 {
        return format!("{sign}{digits}");
    }
    let mut out = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn superscript(exponent: &str) -> String {
    let raise = |digit: char| match digit {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' => '⁰',
        digit => digit.to_digit(10).and_then(|value| char::from_u32(0x2070 + value)).unwrap_or(digit),
    };
    exponent.chars().map(raise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_what_matters() {
        for (value, expected) in [
            (0.0, "0.000"),
            (-0.4217, "−0.422"),
            (13.701_3, "13.70"),
            (257.62, "257.6"),
            (4321.9, "4322"),
            (98_765.4, "98,765"),
            (2.34e7, "2.3·10⁷"),
        ] {
            assert_eq!(plain(value), expected);
        }
        assert_eq!(small(4.2e-5), "4.2·10⁻⁵");
        assert_eq!(percent(0.3), "30\u{202f}%");
        assert_eq!(percent(0.7512), "75.1\u{202f}%");
        assert_eq!(share(0.66), "66.0\u{202f}%");
        assert_eq!(bytes(513 << 20), "513\u{202f}MiB");
        assert_eq!(bytes(1_345_184), "1.3\u{202f}MiB");
        assert_eq!(bytes(12), "12\u{202f}B");
        assert_eq!(duration(9.46), "9.5\u{202f}s");
        assert_eq!(duration(3600.0), "60\u{202f}min");
    }

    #[test]
    fn a_spread_has_the_decimals_of_its_mean() {
        let (mean, deviation) = spread(Spread { mean: 52.67, deviation: Some(0.4), n: 3 });
        assert_eq!((mean.as_str(), deviation.as_deref()), ("52.67", Some("0.40")));
        assert_eq!(spread(Spread { mean: 1.0, deviation: None, n: 1 }).1, None);
    }
}
