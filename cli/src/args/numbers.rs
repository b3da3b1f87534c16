//! Numbers as people write them.

/// Reads a count of which there must be one at least: `1`, `64`.
pub(super) fn parse_positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

/// Reads a share of which something is left: `0.3`.
pub(super) fn parse_share(text: &str) -> Result<f64, String> {
    parse_number(text, |share| (0.0..1.0).contains(&share)).ok_or_else(|| "expected a number in [0, 1)".to_owned())
}

/// One share, or those of a range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shares(pub(crate) Vec<f64>);

/// Between the shares of a range that names no step.
const USUAL_STEP: f64 = 0.1;

/// Reads a share, `0.3`, or a range with both its ends, `0.1..0.5`, in steps of a tenth, or of the last number in
/// `0.1..0.5..0.05`.
pub(super) fn parse_shares(text: &str) -> Result<Shares, String> {
    let Some((first, rest)) = text.split_once("..") else { return Ok(Shares(vec![parse_share(text)?])) };
    let (last, step) = rest.split_once("..").map_or((rest, Ok(USUAL_STEP)), |(last, step)| (last, parse_share(step)));
    let (first, last, step) = (parse_share(first)?, parse_share(last)?, step?);
    let n_steps = ((last - first) / step).round();
    if last < first || step < 1e-3 || (first + n_steps * step - last).abs() > 1e-9 {
        return Err("expected a range such as 0.1..0.5, or 0.1..0.5..0.05, of whole steps of at least 0.001".to_owned());
    }
    let n_steps = n_steps as usize;
    // So that 0.1 + 2 × 0.1 is 0.3.
    let at = |index: usize| (((first + index as f64 * step) * 1e9).round() / 1e9).min(last);
    Ok(Shares((0..=n_steps).map(at).collect()))
}

/// Reads what may not be negative, such as a ridge: `0`, `1e-3`.
pub(super) fn parse_not_negative(text: &str) -> Result<f64, String> {
    let number = parse_number(text, |number| number.is_finite() && number >= 0.0);
    number.ok_or_else(|| "expected a finite number of at least 0".to_owned())
}

/// Reads a temperature of an allocation: `0.05`.
pub(super) fn parse_above_zero(text: &str) -> Result<f64, String> {
    let number = parse_number(text, |number| number.is_finite() && number >= f64::MIN_POSITIVE);
    number.ok_or_else(|| "expected a finite number above 0".to_owned())
}

/// Reads a probability that is not 0: `0.9`, `1`.
pub(super) fn parse_probability(text: &str) -> Result<f64, String> {
    let number = parse_number(text, |number| number > 0.0 && number <= 1.0);
    number.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

fn parse_number(text: &str, is_allowed: impl Fn(f64) -> bool) -> Option<f64> {
    text.parse().ok().filter(|number| is_allowed(*number))
}

/// Reads `8GiB`, `500MB`, `1024`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    parse_with_unit(text, &units).ok_or_else(|| "expected a number of bytes such as 8GiB or 500MB".to_owned())
}

/// Reads `100M`, `1.5B`, `1000`.
pub(super) fn parse_count(text: &str) -> Result<u64, String> {
    let units = [("K", 1000), ("M", 1_000_000), ("B", 1_000_000_000), ("", 1)];
    parse_with_unit(text, &units).ok_or_else(|| "expected a number such as 100M or 1.5B".to_owned())
}

fn parse_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number * *factor as f64).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_and_positive() {
        assert_eq!((parse_positive("1"), parse_positive("4096")), (Ok(1), Ok(4096)));
        for bad in ["", "0", "-1", "1.5", "many", "99999999999999999999"] {
            assert_eq!(parse_positive(bad), Err("expected a whole number of at least 1".to_owned()), "{bad}");
        }
    }

    #[test]
    fn numbers_end_where_they_stop_to_make_sense() {
        assert_eq!((parse_share("0"), parse_share("0.999")), (Ok(0.0), Ok(0.999)));
        assert_eq!((parse_not_negative("0"), parse_not_negative("1e-3")), (Ok(0.0), Ok(1e-3)));
        assert_eq!((parse_above_zero("1e-300"), parse_above_zero("2")), (Ok(1e-300), Ok(2.0)));
        assert_eq!((parse_probability("1"), parse_probability("1e-3")), (Ok(1.0), Ok(1e-3)));
        let parsers = [parse_share, parse_not_negative, parse_above_zero, parse_probability];
        for bad in ["", "-1", "-1e-9", "nan", "inf", "-inf", "1e400", "0,3", "30%"] {
            assert!(parsers.iter().all(|parse| parse(bad).is_err()), "{bad}");
        }
        assert!(parse_share("1").is_err() && parse_above_zero("0").is_err() && parse_above_zero("1e-310").is_err());
        assert!(parse_probability("0").is_err() && parse_probability("1.001").is_err());
    }

    #[test]
    fn ranges_of_shares_hold_both_ends() {
        let shares = |text: &str| parse_shares(text).map(|shares| shares.0);
        assert_eq!(shares("0.3"), Ok(vec![0.3]));
        assert_eq!(shares("0.1..0.5"), Ok(vec![0.1, 0.2, 0.3, 0.4, 0.5]));
        assert_eq!(shares("0.2..0.3..0.05"), Ok(vec![0.2, 0.25, 0.3]));
        assert_eq!(shares("0.4..0.4"), Ok(vec![0.4]));
        for bad in
            ["..", "0.2..0.45", "0.1..", "..0.5", "0.5..0.1", "0.1..1", "0.1..0.5..0", "0.1..0.5..-0.1", "0.1...0.5"]
        {
            assert!(shares(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("500 mb"), Ok(500_000_000));
        assert_eq!(parse_bytes("12"), Ok(12));
        assert_eq!(parse_count("1.5B"), Ok(1_500_000_000));
        for bad in ["", "GiB", "-1", "1 QiB", "1e400", "nan"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
