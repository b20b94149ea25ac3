use crate::error::errno;
use crate::support::{allowed, real};
use crate::{Error, MADV_MERGE, Region};

/// Merges the whole pages of `slice`; bytes in a page that is only partly the slice's stay alone.
pub fn merge<T>(slice: &[T]) -> Result<(), Error> {
    merge_region(slice.into())
}

/// Merges the whole pages within `len` bytes from `addr`: the range is rounded inward, so nothing outside it is advised.
/// A range without a whole page is done at once, on any kernel.
pub fn merge_range(addr: usize, len: usize) -> Result<(), Error> {
    merge_region(Region { start: addr, len })
}

fn merge_region(region: Region) -> Result<(), Error> {
    match whole_pages(region)? {
        Some(region) => merge_exact(region.start, region.len),
        None => Ok(()),
    }
}

/// The whole pages inside, if there are any.
fn whole_pages(region: Region) -> Result<Option<Region>, Error> {
    if region.wraps() {
        return Err(Error::Invalid {
            region,
            errno: None,
        });
    }
    Ok(region.inward(page_size()))
}

/// The call as it is: nothing rounded, nothing checked before the kernel sees it. It refuses a start within a page.
pub fn merge_exact(addr: usize, len: usize) -> Result<(), Error> {
    allowed()?;
    advise(Region { start: addr, len }, MADV_MERGE)
}

/// Hands the whole pages of `slice` to KSM (`MADV_MERGEABLE`), whose kernel thread, if the administrator has started it, may
/// merge them some time later: the explicit fallback for kernels that offer no more.
///
/// No call of this crate does so on its own.
///
/// ```
/// # let table = vec![7u64; 100_000];
/// match sksm::merge(&table) {
///     Err(sksm::Error::Unsupported { instead: sksm::Support::Ksm, .. }) => sksm::advise_ksm(&table)?,
///     result => result.or_else(|error| match error {
///         sksm::Error::Unsupported { .. } => Ok(()), // Neither: go on without.
///         error => Err(error),
///     })?,
/// }
/// # Ok::<(), sksm::Error>(())
/// ```
pub fn advise_ksm<T>(slice: &[T]) -> Result<(), Error> {
    advise_ksm_region(slice.into())
}

/// [`advise_ksm`] for the whole pages within `len` bytes from `addr`.
pub fn advise_ksm_range(addr: usize, len: usize) -> Result<(), Error> {
    advise_ksm_region(Region { start: addr, len })
}

fn advise_ksm_region(region: Region) -> Result<(), Error> {
    match whole_pages(region)? {
        Some(region) => advise(region, libc::MADV_MERGEABLE),
        None => Ok(()),
    }
}

fn advise(region: Region, advice: i32) -> Result<(), Error> {
    // libc and no safer wrapper: those take their own enum of advices, which a new number has no place in.
    // SAFETY: merging changes no content, protection or address, so it is sound on any range, mapped or not.
    match unsafe { libc::madvise(region.start as *mut libc::c_void, region.len, advice) } {
        0 => Ok(()),
        _ => Err(Error::from_errno(errno(), real(), region)),
    }
}

/// The size of a page in bytes.
pub fn page_size() -> usize {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It cannot fail; were it to, a rounding to 4 KiB is merely refused by the kernel where pages are larger.
    usize::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Support;
    use crate::maps::Line;
    use crate::test_pages::Pages;

    /// What a merge of good memory must give on this kernel.
    fn assert_expected(result: Result<(), Error>) {
        match real() {
            Support::Merge => assert_eq!(result, Ok(())),
            instead => assert_eq!(
                result,
                Err(Error::Unsupported {
                    instead,
                    errno: libc::EINVAL
                })
            ),
        }
    }

    #[test]
    fn merging_keeps_the_contents() {
        let pages = Pages::new(4, |number| if number < 2 { 0x5a } else { 0 });
        assert_expected(merge(pages.0));
        let page = page_size();
        assert!(pages.0[..2 * page].iter().all(|byte| *byte == 0x5a));
        assert!(pages.0[2 * page..].iter().all(|byte| *byte == 0));
        pages.0[0] = 1;
        assert_eq!((pages.0[0], pages.0[page]), (1, 0x5a));
        assert_expected(merge(pages.0));
    }

    #[test]
    fn less_than_a_page_is_done_at_once() {
        let pages = Pages::new(2, |_| 1);
        assert_eq!(merge(&pages.0[1..page_size()]), Ok(()));
        assert_eq!(merge::<u8>(&[]), Ok(()));
    }

    #[test]
    fn a_range_past_the_end_of_the_address_space_is_refused() {
        let region = Region {
            start: usize::MAX,
            len: 2,
        };
        let refused = Err(Error::Invalid {
            region,
            errno: None,
        });
        assert_eq!(merge_range(usize::MAX, 2), refused);
        assert_eq!(advise_ksm_range(usize::MAX, 2), refused);
    }

    #[test]
    fn exact_calls_are_not_rounded() {
        let pages = Pages::new(2, |_| 2);
        let result = merge_exact(pages.0.as_ptr() as usize + 1, page_size());
        assert_eq!(
            result.map_err(|error| error.raw_os_error()),
            Err(Some(libc::EINVAL))
        );
        assert_expected(merge_exact(pages.0.as_ptr() as usize, pages.0.len()));
    }

    #[test]
    fn ksm_is_asked_only_explicitly() {
        let pages = Pages::new(2, |_| 3);
        let flags = || {
            let addr = pages.0.as_ptr() as usize;
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut lines = smaps.lines();
            lines.find(|line| {
                Line::parse(line.as_bytes()).is_some_and(|line| line.region.contains(addr))
            });
            let flags = lines.find(|line| line.starts_with("VmFlags:"));
            flags.unwrap().contains(" mg")
        };
        if real() == Support::None {
            assert!(advise_ksm(pages.0).is_err());
            return;
        }
        _ = merge(pages.0);
        assert!(!flags());
        assert_eq!(advise_ksm(pages.0), Ok(()));
        assert!(flags());
    }
}
