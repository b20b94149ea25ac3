//! Times and shares, as people write them.

use std::time::Duration;

/// As in 90s, 5m or 1h 30m; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let found = match text.trim().parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    // Ages of pages are kept in few bits.
    let range = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
    let found = found.filter(|found| range.contains(found));
    found.ok_or_else(|| "give a time from 100ms to 24h, as in 90s or 5m".into())
}

/// The same, but long enough for what ends to end.
pub fn patience(text: &str) -> Result<Duration, String> {
    let found = duration(text)?;
    let long = found >= Duration::from_secs(1);
    (long.then_some(found)).ok_or_else(|| "give a time from 1s on, as in 5m".into())
}

/// Of one CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(f64);

impl Share {
    /// None: as much as there is.
    pub fn limit(self) -> Option<f64> {
        (self.0 < 1.0).then_some(self.0)
    }

    pub fn percent(self) -> f64 {
        self.0 * 100.0
    }
}

/// As in 5% or 0.05.
pub fn share(text: &str) -> Result<Share, String> {
    let found = match text.trim().strip_suffix('%') {
        Some(percent) => percent.trim().parse().map(|percent: f64| percent / 100.0),
        None => text.trim().parse(),
    };
    let found = found.ok().filter(|share| (0.001..=1.0).contains(share));
    found
        .map(Share)
        .ok_or_else(|| "give a share from 0.1% to 100%, as in 5%".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_units_are_understood() {
        for (text, seconds) in [
            ("60s", 60.0),
            ("90", 90.0),
            ("5m", 300.0),
            ("250ms", 0.25),
            ("1h 30m", 5400.0),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_secs_f64(seconds)),
                "{text}"
            );
        }
        for text in ["", "x", "-1", "1ms", "25h", "nan", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_of_one_cpu() {
        assert_eq!(share("5%").unwrap().limit(), Some(0.05));
        assert_eq!(share("0.05").unwrap().limit(), Some(0.05));
        assert_eq!(share("100 %").unwrap().limit(), None);
        for text in ["", "%", "5", "101%", "-1%", "nan"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
