use std::path::Path;

use crate::Error;
use crate::proc::{lines, no_process, read};
use crate::system_statistics::number;

/// What merging has done to one process, as the kernel counts it in `/proc/PID/ksm_stat`. None where this kernel does not count
/// it; `zero_pages` is KSM's too, the others are SKSM's alone.
///
/// All are signed, so that a count that has gone below zero is seen to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MergeStatistics {
    /// Its mappings that merges redirected to another page and that are still there, in pages: what merging saves of its memory,
    /// never what it shares since a fork.
    pub merged_pages: Option<i64>,
    /// Its pages that became merged pages, for others to share, and that it still maps.
    pub published_pages: Option<i64>,
    /// Its pages that SKSM and KSM made the zero page.
    pub zero_pages: Option<i64>,
    /// What SKSM saves of its memory less what the bookkeeping for it takes, in bytes, zero pages left out.
    pub profit: Option<i64>,
}

impl MergeStatistics {
    /// Of this process.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] where the kernel has no such file, or without `/proc`.
    pub fn own() -> Result<Self, Error> {
        Self::read("/proc/self/ksm_stat")
    }

    /// Of another process; it needs the right to read its memory map. A kernel that cannot merge has no such file, which is
    /// [`Error::Read`] with `ENOENT`.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] where the kernel has no such file or the right is missing; [`Error::Gone`], [`Error::Thread`] and
    /// [`Error::KernelThread`] where there is no such process.
    pub fn of(pid: u32) -> Result<Self, Error> {
        Self::read(format!("/proc/{pid}/ksm_stat")).map_err(|error| match error {
            Error::Gone { .. } => no_process(pid),
            error => error,
        })
    }

    fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let text = read(path.as_ref(), "/proc/PID/ksm_stat")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &[u8]) -> Self {
        let mut statistics = Self::default();
        for line in lines(text) {
            let line = std::str::from_utf8(line).unwrap_or_default();
            let Some((name, value)) = line.split_once([' ', ':']) else {
                continue;
            };
            let field = match name {
                "sksm_merged_pages" => &mut statistics.merged_pages,
                "sksm_published_pages" => &mut statistics.published_pages,
                "sksm_process_profit" => &mut statistics.profit,
                "ksm_zero_pages" => &mut statistics.zero_pages,
                _ => continue,
            };
            *field = number(value);
        }
        statistics
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let text =
            b"ksm_rmap_items 3\nksm_zero_pages -7\nksm_merging_pages 2\nksm_process_profit 64\n\
                     ksm_merge_any: no\nsksm_merged_pages 5\nsksm_published_pages 9\n\
                     sksm_process_profit -944\n";
        let right = MergeStatistics {
            merged_pages: Some(5),
            published_pages: Some(9),
            zero_pages: Some(-7),
            profit: Some(-944),
        };
        assert_eq!(MergeStatistics::parse(text), right);
        let without = MergeStatistics::parse(b"ksm_zero_pages 18446744073709551613\n");
        assert_eq!(without.zero_pages, Some(-3));
        assert_eq!((without.merged_pages, without.profit), (None, None));
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        let error = MergeStatistics::of(i32::MAX as u32).unwrap_err();
        assert_eq!(error, Error::Gone { errno: libc::ESRCH });
    }

    #[test]
    fn this_process_has_them_where_the_kernel_merges() {
        let there = Path::new("/proc/self/ksm_stat").exists();
        let own = MergeStatistics::own();
        assert_eq!(own.is_ok(), there);
        let sksm = own.is_ok_and(|own| own.merged_pages.is_some());
        assert_eq!(sksm, crate::support() == crate::Support::Merge);
    }
}
