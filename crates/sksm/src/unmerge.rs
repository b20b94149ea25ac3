use crate::advise::advise;
use crate::os::UNMERGEABLE;
use crate::support::allowed_to_undo;
use crate::{Error, Region, page_size};

/// Gives `slice` physical pages of its own again (`MADV_UNMERGEABLE`): SKSM's merged pages and KSM's, and what they made the
/// zero page.
///
/// The range is rounded outward, unlike that of [`crate::merge`]: not one byte of the slice stays in a page that another process
/// has as well, and a neighbour only gets its own copy of what it holds. When the call returns, the copies are made, which takes
/// as much memory as merging had saved. KSM stops scanning these pages. What a fork has left in common stays so.
///
/// ```
/// let table = vec![7u64; 100_000];
/// match sksm::unmerge(&table) {
///     Ok(()) => println!("shared with nobody"),
///     Err(sksm::Error::Unsupported { .. }) => println!("it never was: this kernel merges nothing"),
///     Err(error) => eprintln!("{error}"),
/// }
/// ```
///
/// # Errors
///
/// [`Error::Hole`], [`Error::NoMemory`] and [`Error::Interrupted`] leave some of the range as it was; what was done stays done. On
/// a kernel that merges nothing it is [`Error::Unsupported`]; one that has only KSM undoes what KSM did.
pub fn unmerge<T>(slice: &[T]) -> Result<(), Error> {
    unmerge_region(slice.into())
}

/// [`unmerge`] for every page that holds any of `len` bytes from `addr`.
///
/// # Errors
///
/// As [`unmerge`]; [`Error::Invalid`] for a range past the end of the address space.
pub fn unmerge_range(addr: usize, len: usize) -> Result<(), Error> {
    unmerge_region(Region { start: addr, len })
}

fn unmerge_region(region: Region) -> Result<(), Error> {
    if region.len == 0 {
        return Ok(());
    }
    let pages = region.outward(page_size()).ok_or(Error::Invalid {
        region,
        errno: None,
    })?;
    unmerge_exact(pages.start, pages.len)
}

/// The call as it is: nothing rounded, nothing checked before the kernel sees it. It refuses a start within a page.
///
/// # Errors
///
/// As [`unmerge_range`]; [`Error::Invalid`] also for a start within a page.
pub fn unmerge_exact(addr: usize, len: usize) -> Result<(), Error> {
    allowed_to_undo()?;
    advise(Region { start: addr, len }, UNMERGEABLE)
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use crate::Support;
    use crate::support::real;
    use crate::test_pages::Pages;

    #[test]
    fn undoing_keeps_the_contents() {
        let pages = Pages::new(4, |number| number as u8 / 2);
        _ = crate::merge(pages.0);
        let expected = match real() {
            Support::None => Err(Some(libc::EINVAL)),
            _ => Ok(()),
        };
        let result = unmerge(pages.0).map_err(|error| error.raw_os_error());
        assert_eq!(result, expected);
        let page = page_size();
        assert!(pages.0[..2 * page].iter().all(|byte| *byte == 0));
        assert!(pages.0[2 * page..].iter().all(|byte| *byte == 1));
    }

    /// What KSM is told shows in smaps, where it is told anything.
    #[test]
    fn whole_pages_around_the_range_are_meant() {
        let pages = Pages::new(4, |_| 1);
        let (start, page) = (pages.0.as_ptr() as usize, page_size());
        if crate::advise_ksm(pages.0).is_err() {
            return;
        }
        unmerge_range(start + page + 1, page).unwrap();
        let smaps = std::fs::read("/proc/self/smaps").unwrap();
        for (number, handed) in [(0, true), (1, false), (2, false), (3, true)] {
            let region = Region::from((start + number * page, page));
            let flagged = crate::linux::process::all_flagged(&smaps, region, b"mg");
            assert_eq!(flagged, Some(handed), "page {number}");
        }
    }

    #[test]
    fn nothing_is_done_at_once() {
        assert_eq!(unmerge::<u8>(&[]), Ok(()));
        assert_eq!(unmerge_range(17, 0), Ok(()));
    }

    #[test]
    fn a_bad_range_is_refused() {
        let (start, len) = (usize::MAX, 2);
        let region = Region { start, len };
        let errno = None;
        let refused = Err(Error::Invalid { region, errno });
        assert_eq!(unmerge_range(start, len), refused);
        let pages = Pages::new(2, |_| 2);
        let result = unmerge_exact(pages.0.as_ptr() as usize + 1, page_size());
        let errno = result.map_err(|error| error.raw_os_error());
        assert_eq!(errno, Err(Some(libc::EINVAL)));
    }
}
