use std::path::Path;

/// Counters of the whole system, from `/sys/kernel/mm/sksm` or `/sys/kernel/mm/ksm`: names as the files have them.
///
/// All are signed, as `general_profit` may be below zero: the bytes that merging saves less those that its bookkeeping takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SystemStatistics(Vec<(&'static str, i64)>);

const SKSM: &[&str] = &[
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_zero",
    "calls",
    "pages_scanned",
    "pages_merged",
    "pages_published",
    "pages_withdrawn",
    "pages_busy",
    "pages_refused",
    "pages_swapped",
    "pages_swapped_in",
    "pages_asleep",
    "bytes_metadata",
    "general_profit",
    "max_page_sharing",
];
const KSM: &[&str] = &[
    "run",
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "ksm_zero_pages",
    "full_scans",
    "pages_scanned",
    "general_profit",
    "max_page_sharing",
];

impl SystemStatistics {
    /// Of SKSM; none where the kernel has it not.
    #[must_use]
    pub fn sksm() -> Option<Self> {
        Self::read("/sys/kernel/mm/sksm", SKSM)
    }

    /// Of KSM; none where the kernel has it not.
    #[must_use]
    pub fn ksm() -> Option<Self> {
        Self::read("/sys/kernel/mm/ksm", KSM)
    }

    /// All counters, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, i64)> + '_ {
        self.0.iter().copied()
    }

    /// One counter, if this kernel has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<i64> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    fn read(dir: &str, names: &[&'static str]) -> Option<Self> {
        let dir = Path::new(dir);
        dir.is_dir().then(|| {
            let value = |name| {
                let text = std::fs::read_to_string(dir.join(name)).ok()?;
                Some((name, number(&text)?))
            };
            Self(names.iter().copied().filter_map(value).collect())
        })
    }
}

/// A counter as the kernel prints it. No counter gets beyond the signed ones but by falling below zero where it is printed as if
/// it could not: then it is read as what it is.
pub(crate) fn number(text: &str) -> Option<i64> {
    let text = text.trim();
    let unsigned = || text.parse::<u64>().map(|number| number as i64);
    text.parse().or_else(|_| unsigned()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_the_kernels() {
        let there = Path::new("/sys/kernel/mm/ksm").is_dir();
        let statistics = SystemStatistics::ksm();
        assert_eq!(statistics.is_some(), there);
        if let Some(statistics) = statistics {
            assert!(statistics.get("max_page_sharing").is_some());
            assert_eq!(statistics.get("nonsense"), None);
        }
    }

    #[test]
    fn what_is_below_zero_is_read() {
        for (text, right) in [
            ("7\n", Some(7)),
            ("-4096\n", Some(-4096)),
            ("18446744073709551615\n", Some(-1)),
            ("18446744073709551616\n", None),
            ("[user]\n", None),
            ("", None),
        ] {
            assert_eq!(number(text), right, "{text}");
        }
    }
}
