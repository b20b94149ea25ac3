use core::ffi::{CStr, c_int};

use sksm::Kinds;

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
    /// Text goes into the store, instead of being merged.
    pub store: bool,
    pub store_dir: Option<&'static [u8]>,
    /// Bytes.
    pub store_limit: Option<u64>,
    /// Merging is asked for by name.
    pub merge: bool,
    pub misunderstood: Misunderstood,
}

/// Variables with values that mean nothing here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Misunderstood([Option<(&'static CStr, &'static [u8])>; 7]);

impl Misunderstood {
    pub fn each(&self) -> impl Iterator<Item = (&'static CStr, &'static [u8])> {
        self.0.iter().flatten().copied()
    }

    /// What the value means; notes it down if that is nothing.
    fn read<T>(
        &mut self,
        name: &'static CStr,
        value: &'static [u8],
        parse: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let meaning = parse(value);
        if meaning.is_none() {
            if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
                *place = Some((name, value));
            }
        }
        meaning
    }
}

impl Settings {
    pub fn from_environment() -> Self {
        Self::read(variable)
    }

    fn read(variable: impl Fn(&CStr) -> Option<&'static [u8]>) -> Self {
        // An empty one counts as not set, but for SKSM: nobody empties a list to have the default.
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let mut wrong = Misunderstood::default();
        let list = variable(c"SKSM").unwrap_or(b"text");
        Settings {
            kinds: wrong.read(c"SKSM", list, Kinds::parse),
            min_pages: set(c"SKSM_MIN_PAGES")
                .and_then(|value| wrong.read(c"SKSM_MIN_PAGES", value, pages))
                .unwrap_or(0),
            verbose: set(c"SKSM_VERBOSE").is_some_and(|value| value != b"0"),
            after: set(c"SKSM_AFTER")
                .and_then(|value| wrong.read(c"SKSM_AFTER", value, milliseconds)),
            signal: set(c"SKSM_SIGNAL").and_then(|value| wrong.read(c"SKSM_SIGNAL", value, signal)),
            filter_allows: set(c"SKSM_SECCOMP")
                .and_then(|value| {
                    let allowed = |value: &[u8]| (value == b"allowed").then_some(());
                    wrong.read(c"SKSM_SECCOMP", value, allowed)
                })
                .is_some(),
            store: set(c"SKSM_STORE")
                .and_then(|value| wrong.read(c"SKSM_STORE", value, yes_or_no))
                .unwrap_or(false),
            store_dir: set(c"SKSM_STORE_DIR"),
            store_limit: set(c"SKSM_STORE_LIMIT")
                .and_then(|value| wrong.read(c"SKSM_STORE_LIMIT", value, sksm_store::size::parse)),
            merge: variable(c"SKSM").is_some(),
            misunderstood: wrong,
        }
    }
}

fn yes_or_no(value: &[u8]) -> Option<bool> {
    match value {
        b"1" => Some(true),
        b"0" => Some(false),
        _ => None,
    }
}

fn pages(digits: &[u8]) -> Option<usize> {
    usize::try_from(number(digits)?).ok()
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
    } else if let Some(digits) = time.strip_suffix(b"h") {
        (digits, 3_600_000)
    } else {
        (time, 1000)
    };
    number(digits)?.checked_mul(unit)
}

/// A real-time signal, as a number or counted from the first or the last; or one that ends a program which does not expect it,
/// and that the kernel sends for no reason of its own.
fn signal(name: &[u8]) -> Option<c_int> {
    let name = name.strip_prefix(b"SIG").unwrap_or(name);
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let count = |digits| c_int::try_from(number(digits)?).ok();
    let signal = match name {
        b"USR1" => return Some(libc::SIGUSR1),
        b"USR2" => return Some(libc::SIGUSR2),
        b"HUP" => return Some(libc::SIGHUP),
        b"RTMIN" => first,
        b"RTMAX" => last,
        _ => {
            if let Some(digits) = name.strip_prefix(b"RTMIN+") {
                first.checked_add(count(digits)?)?
            } else if let Some(digits) = name.strip_prefix(b"RTMAX-") {
                last.checked_sub(count(digits)?)?
            } else {
                count(name)?
            }
        }
    };
    let named = matches!(signal, libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGHUP);
    (named || (first..=last).contains(&signal)).then_some(signal)
}

#[cfg(test)]
mod tests {
    use sksm::Kind;

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
    fn what_is_not_understood_is_known() {
        let settings = Settings::read(|name| match name.to_bytes() {
            b"SKSM_AFTER" => Some(b"1d".as_slice()),
            b"SKSM_SIGNAL" | b"SKSM_SECCOMP" => Some(b"KILL"),
            b"SKSM_MIN_PAGES" => Some(b""),
            _ => None,
        });
        let names: Vec<_> = (settings.misunderstood.each())
            .map(|(name, value)| (name.to_str().unwrap(), value))
            .collect();
        let expected = [
            ("SKSM_AFTER", b"1d".as_slice()),
            ("SKSM_SIGNAL", b"KILL"),
            ("SKSM_SECCOMP", b"KILL"),
        ];
        assert_eq!(names, expected);
        assert!(!settings.filter_allows);
        let list = Settings::read(|name| (name == c"SKSM").then_some(b""));
        assert_eq!(list.misunderstood.each().count(), 1);
    }

    #[test]
    fn the_store_is_asked_for_by_name() {
        let with =
            |value: &'static [u8]| Settings::read(|name| (name == c"SKSM_STORE").then_some(value));
        assert!(with(b"1").store && !with(b"1").merge);
        for value in [b"0".as_slice(), b""] {
            assert!(!with(value).store);
        }
        let wrong = with(b"yes");
        assert!(!wrong.store);
        assert_eq!(wrong.misunderstood.each().count(), 1);
        let limit = Settings::read(|name| (name == c"SKSM_STORE_LIMIT").then_some(b"2M"));
        assert_eq!(limit.store_limit, Some(2 << 20));
        assert!(Settings::read(|name| (name == c"SKSM").then_some(b"")).merge);
    }

    #[test]
    fn times_are_read() {
        for (text, time) in [
            ("5s", Some(5000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
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
        assert_eq!(signal(b"RTMIN"), Some(libc::SIGRTMIN()));
        assert_eq!(signal(b"SIGRTMIN+12"), Some(libc::SIGRTMIN() + 12));
        assert_eq!(signal(b"RTMAX-2"), Some(libc::SIGRTMAX() - 2));
        for bad in [
            "KILL",
            "9",
            "11",
            "0",
            "99",
            "",
            "x",
            "RTMIN+99",
            "RTMIN-1",
            "RTMAX-99",
            "RTMAX+1",
            "RTMIN+99999999999",
        ] {
            assert_eq!(signal(bad.as_bytes()), None, "{bad}");
        }
    }
}
