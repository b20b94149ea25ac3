use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;
use crate::proc::{lines, no_process, read};

/// Memory of one process in bytes, as `/proc/PID/smaps_rollup` sums it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ProcessStatistics {
    /// All pages that are present.
    pub rss: u64,
    /// Private anonymous pages, merged ones included.
    pub anonymous: u64,
    /// Of them, what is in transparent huge pages.
    pub anonymous_huge: u64,
    /// Merged pages, by SKSM or KSM; not those that became the zero page.
    pub ksm: u64,
    /// What is in swap space, where merged pages may be among it. Of the shared memory of the process as well.
    pub swapped: u64,
}

impl ProcessStatistics {
    /// Of this process.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] without `/proc`.
    pub fn own() -> Result<Self, Error> {
        Self::read("/proc/self/smaps_rollup")
    }

    /// Of another process; it needs the right to read its memory map.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] without `/proc` or the right; [`Error::Gone`], [`Error::Thread`] and [`Error::KernelThread`] where there is no such
    /// process.
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
            "AnonHugePages" => &mut self.anonymous_huge,
            "KSM" => &mut self.ksm,
            "Swap" => &mut self.swapped,
            _ => return,
        };
        let kib = rest.trim().strip_suffix(" kB").map(str::parse::<u64>);
        if let Some(Ok(kib)) = kib {
            *field += kib * 1024;
        }
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
///
/// # Errors
///
/// [`Error::Read`] without `/proc`; `call` may have been run by then.
pub fn measure<T>(call: impl FnOnce() -> T) -> Result<(T, Effect), Error> {
    let before = ProcessStatistics::own()?;
    let start = Instant::now();
    let result = call();
    let time = start.elapsed();
    let after = ProcessStatistics::own()?;
    let merged = after.ksm as i64 - before.ksm as i64;
    Ok((result, Effect { merged, time }))
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
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
            "Swap:                 12 kB",
            "SwapPss:               3 kB",
            "VmFlags: rd wr",
        ] {
            statistics.add_line(line.as_bytes());
        }
        let expected = ProcessStatistics {
            rss: 1688 * 1024,
            anonymous: 116 * 1024,
            ksm: 8 * 1024,
            anonymous_huge: 0,
            swapped: 12 * 1024,
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
}
