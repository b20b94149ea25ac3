use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;
use crate::process::no_process;

/// Memory of one process in bytes, as `/proc/PID/smaps_rollup` sums it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ProcessStatistics {
    /// All pages that are present.
    pub rss: u64,
    /// Private anonymous pages, merged ones included.
    pub anonymous: u64,
    /// Merged pages, by SKSM or KSM; not those that became the zero page.
    pub ksm: u64,
}

impl ProcessStatistics {
    /// Of this process.
    pub fn own() -> Result<Self, Error> {
        Self::read("/proc/self/smaps_rollup")
    }

    /// Of another process; it needs the right to read its memory map.
    pub fn of(pid: u32) -> Result<Self, Error> {
        Self::read(format!("/proc/{pid}/smaps_rollup")).map_err(|error| match error {
            Error::Gone { .. } => no_process(pid),
            error => error,
        })
    }

    fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let text = read(path.as_ref(), "/proc/PID/smaps_rollup")?;
        let mut statistics = Self::default();
        for line in lines(&text) {
            statistics.add_line(line);
        }
        Ok(statistics)
    }

    /// Adds a line of smaps, if it is of a field that is counted.
    pub(crate) fn add_line(&mut self, line: &[u8]) {
        let text = std::str::from_utf8(line).unwrap_or_default();
        let Some((name, rest)) = text.split_once(':') else {
            return;
        };
        let field = match name {
            "Rss" => &mut self.rss,
            "Anonymous" => &mut self.anonymous,
            "KSM" => &mut self.ksm,
            _ => return,
        };
        let kib = rest.trim().strip_suffix(" kB").map(str::parse::<u64>);
        if let Some(Ok(kib)) = kib {
            *field += kib * 1024;
        }
    }
}

/// Counters of the whole system, from `/sys/kernel/mm/sksm` or `/sys/kernel/mm/ksm`: names as the files have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SystemStatistics(Vec<(&'static str, u64)>);

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
    "bytes_metadata",
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
    "max_page_sharing",
];

impl SystemStatistics {
    /// Of SKSM; none where the kernel has it not.
    pub fn sksm() -> Option<Self> {
        Self::read("/sys/kernel/mm/sksm", SKSM)
    }

    /// Of KSM; none where the kernel has it not.
    pub fn ksm() -> Option<Self> {
        Self::read("/sys/kernel/mm/ksm", KSM)
    }

    /// All counters, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied()
    }

    /// One counter, if this kernel has it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    fn read(dir: &str, names: &[&'static str]) -> Option<Self> {
        let dir = Path::new(dir);
        dir.is_dir().then(|| {
            let value = |name| {
                let text = std::fs::read_to_string(dir.join(name)).ok()?;
                Some((name, text.trim().parse().ok()?))
            };
            Self(names.iter().copied().filter_map(value).collect())
        })
    }
}

/// What a call has changed for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Effect {
    /// How much more of its memory is merged, in bytes; negative if it became less.
    pub merged: i64,
    /// How long the call took.
    pub time: Duration,
}

/// Runs `call` and tells what it has changed. Other threads' doings are counted too.
///
/// ```
/// let table = vec![7u64; 100_000];
/// let (result, effect) = sksm::measure(|| sksm::merge(&table))?;
/// println!("{result:?}: {} KiB more are merged, in {:?}", effect.merged / 1024, effect.time);
/// # Ok::<(), sksm::Error>(())
/// ```
pub fn measure<T>(call: impl FnOnce() -> T) -> Result<(T, Effect), Error> {
    let before = ProcessStatistics::own()?;
    let start = Instant::now();
    let result = call();
    let time = start.elapsed();
    let after = ProcessStatistics::own()?;
    let merged = after.ksm as i64 - before.ksm as i64;
    Ok((result, Effect { merged, time }))
}

/// Reads a file of proc: bytes, as paths may be anything.
pub(crate) fn read(path: &Path, file: &'static str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| match error.raw_os_error() {
        Some(errno @ libc::ESRCH) => Error::Gone { errno },
        Some(libc::ENOENT) if Path::new("/proc/self").exists() && !there(path) => {
            Error::Gone { errno: libc::ESRCH }
        }
        errno => Error::Read {
            file,
            errno: errno.unwrap_or(libc::EIO),
        },
    })
}

/// Whether the process is there: a file may be missing because this kernel has it not.
fn there(path: &Path) -> bool {
    path.parent().is_some_and(Path::exists)
}

/// Its lines, which end at a newline and nothing else.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_summed() {
        let mut statistics = ProcessStatistics::default();
        for line in [
            "Rss:                1688 kB",
            "Pss_Anon:            112 kB",
            "Anonymous:           112 kB",
            "Anonymous:             4 kB",
            "KSM:                   8 kB",
            "VmFlags: rd wr",
        ] {
            statistics.add_line(line.as_bytes());
        }
        let expected = ProcessStatistics {
            rss: 1688 * 1024,
            anonymous: 116 * 1024,
            ksm: 8 * 1024,
        };
        assert_eq!(statistics, expected);
    }

    #[test]
    fn new_memory_shows() {
        let before = ProcessStatistics::own().unwrap();
        let pages = crate::test_pages::Pages::new(1000, |_| 9);
        let after = ProcessStatistics::of(std::process::id()).unwrap();
        assert!(after.anonymous >= before.anonymous + (pages.0.len() / 2) as u64);
        assert!(after.rss >= after.anonymous);
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        let error = ProcessStatistics::of(i32::MAX as u32).unwrap_err();
        assert_eq!(error, Error::Gone { errno: libc::ESRCH });
    }

    #[test]
    fn a_file_that_the_kernel_has_not_is_no_end_of_a_process() {
        let errno = libc::ENOENT;
        let file = "/proc/PID/nonsense";
        assert_eq!(
            read(Path::new("/proc/self/nonsense"), file),
            Err(Error::Read { file, errno })
        );
    }

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
}
