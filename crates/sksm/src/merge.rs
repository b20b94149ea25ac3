use crate::advise::advise;
use crate::os::MERGEABLE;
use crate::{Error, MADV_MERGE, Region, page_size, require};

/// Merges the whole pages of `slice`; bytes in a page that is only partly the slice's stay alone.
///
/// # Errors
///
/// [`Error::Unsupported`] where the kernel does not merge, see [`support`](crate::support()), and [`Error::Undecided`] where that cannot
/// be found out now; nothing was done then.
/// [`Error::NoMemory`] and [`Error::Interrupted`] leave some of it as it was.
pub fn merge<T>(slice: &[T]) -> Result<(), Error> {
    merge_region(slice.into())
}

/// Merges the whole pages within `len` bytes from `addr`: the range is rounded inward, so nothing outside it is advised.
/// A range without a whole page is done at once, on any kernel.
///
/// # Errors
///
/// As [`merge`]; [`Error::Invalid`] for a range past the end of the address space, [`Error::Hole`] if part of it is not mapped: the rest
/// is done.
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
///
/// # Errors
///
/// As [`merge_range`]; [`Error::Invalid`] also for a start within a page.
pub fn merge_exact(addr: usize, len: usize) -> Result<(), Error> {
    require()?;
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
///
/// # Errors
///
/// [`Error::Unsupported`] where the kernel has no KSM; [`Error::NoMemory`] where it has no memory for its bookkeeping.
pub fn advise_ksm<T>(slice: &[T]) -> Result<(), Error> {
    advise_ksm_region(slice.into())
}

/// [`advise_ksm`] for the whole pages within `len` bytes from `addr`.
///
/// # Errors
///
/// As [`advise_ksm`]; [`Error::Invalid`] for a range past the end of the address space, [`Error::Hole`] if part of it is not mapped: the
/// rest is done.
pub fn advise_ksm_range(addr: usize, len: usize) -> Result<(), Error> {
    advise_ksm_region(Region { start: addr, len })
}

fn advise_ksm_region(region: Region) -> Result<(), Error> {
    match whole_pages(region)? {
        Some(region) => advise(region, MERGEABLE),
        None => Ok(()),
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use crate::Support;
    use crate::linux::process::all_flagged;
    use crate::support::real;
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
            let smaps = std::fs::read("/proc/self/smaps").unwrap();
            all_flagged(&smaps, (addr, 1).into(), b"mg").unwrap()
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
