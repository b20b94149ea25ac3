//! Numbers for people.

/// `1234567` as `1,234,567`.
pub fn thousands(number: impl Into<i64>) -> String {
    let number: i64 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// A length of time with three significant digits, or in minutes.
pub fn seconds(seconds: f64) -> String {
    if seconds >= 99.5 {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if seconds >= 1.0 {
        format!("{} s", digits(seconds))
    } else if seconds >= 1e-3 {
        format!("{} ms", digits(seconds * 1e3))
    } else if seconds >= 1e-6 {
        format!("{} µs", digits(seconds * 1e6))
    } else {
        format!("{:.0} ns", seconds * 1e9)
    }
}

/// Pages as MiB.
pub fn mib(pages: i64, page_size: usize) -> String {
    let mib = pages as f64 * page_size as f64 / f64::from(1 << 20);
    if mib.abs() < 99.95 {
        format!("{mib:.1}")
    } else {
        thousands(mib.round() as i64)
    }
}

/// Three significant digits of a number from 1 to 999.
fn digits(number: f64) -> String {
    match number {
        0.0..9.995 => format!("{number:.2}"),
        9.995..99.95 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1000, "-1,000"),
            (12345, "12,345"),
            (342_000, "342,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn times_have_fitting_units() {
        for (time, text) in [
            (0.0, "0 ns"),
            (1.2e-7, "120 ns"),
            (4.32e-6, "4.32 µs"),
            (0.000_123_4, "123 µs"),
            (0.012_34, "12.3 ms"),
            (1.0, "1.00 s"),
            (42.25, "42.2 s"),
            (99.6, "1 min 40 s"),
            (308.4, "5 min 08 s"),
        ] {
            assert_eq!(seconds(time), text);
        }
    }

    #[test]
    fn pages_are_mib() {
        assert_eq!(mib(256, 4096), "1.0");
        assert_eq!(mib(367_000, 4096), "1,434");
        assert_eq!(mib(-25, 4096), "-0.1");
    }
}
