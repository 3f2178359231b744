//! Numbers for people: few digits, thousands apart.

/// A number to three digits or more, `gap` between its thousands; a dash where there is none.
pub(crate) fn number(value: f64, gap: char) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    let digits = match size {
        _ if size < 1e-9 => return "0".to_owned(),
        _ if size >= 99.95 => whole(size, gap),
        _ if size >= 9.995 => format!("{size:.1}"),
        _ => format!("{size:.2}"),
    };
    let is_zero = digits.bytes().all(|digit| matches!(digit, b'0' | b'.'));
    let sign = if value < 0.0 && !is_zero { "−" } else { "" };
    format!("{sign}{digits}")
}

/// A number, not negative, without a fraction, `gap` between its thousands.
pub(crate) fn whole(value: f64, gap: char) -> String {
    grouped(&format!("{value:.0}"), gap)
}

/// Puts `gap` before every third of many digits.
pub(crate) fn grouped(digits: &str, gap: char) -> String {
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(gap);
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(whole(0.0, ' '), "0");
        assert_eq!(whole(999.4, ' '), "999");
        assert_eq!(whole(1_234_567.0, ' '), "1 234 567");
    }

    #[test]
    fn small_numbers_keep_three_digits() {
        let plain = |value| number(value, '_');
        assert_eq!(plain(0.0), "0");
        assert_eq!(plain(-0.0004), "0.00");
        assert_eq!(plain(9.996), "10.0");
        assert_eq!(plain(-12.34), "−12.3");
        assert_eq!(plain(1_234_567.8), "1_234_568");
        assert_eq!(plain(f64::NAN), "–");
    }
}
