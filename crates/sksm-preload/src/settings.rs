use core::ffi::{CStr, c_int};

use sksm::{Kind, Kinds};

use crate::environment::variable;

/// What the environment asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// None for a list that is not understood: then nothing is merged.
    pub kinds: Option<Kinds>,
    pub min_pages: usize,
    pub verbose: bool,
    /// Milliseconds.
    pub after: Option<u64>,
    pub signal: Option<c_int>,
    pub filter_allows: bool,
}

impl Settings {
    pub fn from_environment() -> Self {
        Self::read(variable)
    }

    fn read(variable: impl Fn(&CStr) -> Option<&'static [u8]>) -> Self {
        Settings {
            kinds: match variable(c"SKSM") {
                None => Some(Kinds::of(&[Kind::Text])),
                Some(list) => Kinds::parse(list),
            },
            min_pages: variable(c"SKSM_MIN_PAGES")
                .and_then(number)
                .and_then(|pages| usize::try_from(pages).ok())
                .unwrap_or(0),
            verbose: variable(c"SKSM_VERBOSE").is_some_and(|value| !matches!(value, b"" | b"0")),
            after: variable(c"SKSM_AFTER").and_then(milliseconds),
            signal: variable(c"SKSM_SIGNAL").and_then(signal),
            filter_allows: variable(c"SKSM_SECCOMP") == Some(b"allowed"),
        }
    }
}

pub fn number(digits: &[u8]) -> Option<u64> {
    let mut number: u64 = 0;
    for byte in digits {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    (!digits.is_empty()).then_some(number)
}

fn milliseconds(time: &[u8]) -> Option<u64> {
    let (digits, unit) = if let Some(digits) = time.strip_suffix(b"ms") {
        (digits, 1)
    } else if let Some(digits) = time.strip_suffix(b"s") {
        (digits, 1000)
    } else if let Some(digits) = time.strip_suffix(b"m") {
        (digits, 60_000)
    } else {
        (time, 1000)
    };
    number(digits)?.checked_mul(unit)
}

/// Only signals that end a program which does not expect them, and that the kernel sends for no reason of its own.
fn signal(name: &[u8]) -> Option<c_int> {
    let name = name.strip_prefix(b"SIG").unwrap_or(name);
    match name {
        b"USR1" => return Some(libc::SIGUSR1),
        b"USR2" => return Some(libc::SIGUSR2),
        b"HUP" => return Some(libc::SIGHUP),
        _ => {}
    }
    let number = c_int::try_from(number(name)?).ok()?;
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    let known = matches!(number, libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGHUP);
    (known || real_time.contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_means_text() {
        let settings = Settings::read(|_| None);
        assert_eq!(settings.kinds, Some(Kinds::of(&[Kind::Text])));
        assert_eq!((settings.after, settings.signal), (None, None));
        assert!(!settings.verbose && !settings.filter_allows);
    }

    #[test]
    fn a_list_that_is_not_understood_merges_nothing() {
        let with = |list: &'static [u8]| Settings::read(|name| (name == c"SKSM").then_some(list));
        assert_eq!(with(b"everything").kinds, None);
        assert_eq!(with(b"").kinds, None);
        assert_eq!(with(b"data,heap").kinds, Kinds::parse(b"data,heap"));
    }

    #[test]
    fn the_least_size_is_read() {
        let with = |pages: &'static [u8]| {
            Settings::read(|name| (name == c"SKSM_MIN_PAGES").then_some(pages)).min_pages
        };
        assert_eq!(with(b"17"), 17);
        // What is not understood leaves nothing out.
        for bad in [b"".as_slice(), b"many", b"-1", b"99999999999999999999"] {
            assert_eq!(with(bad), 0);
        }
    }

    #[test]
    fn times_are_read() {
        for (text, time) in [
            ("5s", Some(5000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("7", Some(7000)),
            ("", None),
            ("s", None),
            ("-5s", None),
            ("1.5s", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(milliseconds(text.as_bytes()), time, "{text}");
        }
    }

    #[test]
    fn only_harmless_signals_are_taken() {
        assert_eq!(signal(b"USR2"), Some(libc::SIGUSR2));
        assert_eq!(signal(b"SIGUSR1"), Some(libc::SIGUSR1));
        assert_eq!(signal(b"12"), Some(12));
        assert_eq!(signal(b"40"), Some(40));
        for bad in ["KILL", "9", "11", "0", "99", "", "x"] {
            assert_eq!(signal(bad.as_bytes()), None, "{bad}");
        }
    }
}
