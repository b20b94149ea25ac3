//! Systems that are not Linux: they merge nothing, and say so.

use crate::{Region, Support};

pub(crate) const MERGEABLE: i32 = 12;
pub(crate) const UNMERGEABLE: i32 = 13;

pub(crate) fn ask() -> (Support, Result<(), i32>) {
    (Support::None, Ok(()))
}

pub(crate) fn advise(_: Region, _: i32) -> Result<(), i32> {
    Err(libc::EINVAL)
}

#[cfg(unix)]
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// That of Windows on every processor that it runs on.
#[cfg(not(unix))]
pub(crate) fn page_size() -> usize {
    4096
}

/// On Linux they stand for it: that it merges nothing, and says so.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn nothing_is_offered_and_that_is_certain() {
        assert_eq!(ask(), (Support::None, Ok(())));
    }

    #[test]
    fn all_advice_is_refused_as_unsupported() {
        for advice in [crate::MADV_MERGE, MERGEABLE, UNMERGEABLE] {
            let region = Region::new(0, page_size());
            let refused = advise(region, advice).map_err(|errno| {
                let (instead, _) = ask();
                Error::from_errno(errno, instead, region)
            });
            assert_eq!(refused, Err(Error::unsupported(Support::None)));
        }
    }

    #[test]
    fn there_are_pages() {
        assert!(page_size().is_power_of_two());
    }
}
