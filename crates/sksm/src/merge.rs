use crate::{Error, MADV_MERGE, support};

/// Merges the whole pages of `slice`; bytes in a page that is only partly the slice's stay alone.
pub fn merge<T>(slice: &[T]) -> Result<(), Error> {
    merge_range(slice.as_ptr() as usize, size_of_val(slice))
}

/// Merges the whole pages within `len` bytes from `addr`: the range is rounded inward, so nothing outside it is advised.
/// A range without a whole page is done at once, on any kernel.
pub fn merge_range(addr: usize, len: usize) -> Result<(), Error> {
    match round_inward(addr, len, page_size())? {
        Some((start, len)) => merge_exact(start, len),
        None => Ok(()),
    }
}

/// The call as it is: nothing rounded, nothing checked before the kernel sees it.
pub fn merge_exact(addr: usize, len: usize) -> Result<(), Error> {
    // libc and no safer wrapper: those take their own enum of advices, which a new number has no place in.
    // SAFETY: merging changes no content, protection or address, so it is sound on any range, mapped or not.
    match unsafe { libc::madvise(addr as *mut libc::c_void, len, MADV_MERGE) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// The size of a page in bytes.
pub fn page_size() -> usize {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It cannot fail; were it to, a rounding to 4 KiB is merely refused by the kernel where pages are larger.
    usize::try_from(size).unwrap_or(4096)
}

pub(crate) fn last_error() -> Error {
    // SAFETY: errno's location is valid for this thread.
    let errno = unsafe { *libc::__errno_location() };
    Error::from_errno(errno, support())
}

/// The whole pages within the range, as start and length; none if there is no whole page.
fn round_inward(addr: usize, len: usize, page: usize) -> Result<Option<(usize, usize)>, Error> {
    let end = addr
        .checked_add(len)
        .ok_or(Error::Invalid { errno: None })?;
    let end = end - end % page;
    let start = addr.checked_next_multiple_of(page);
    Ok(start
        .filter(|start| *start < end)
        .map(|start| (start, end - start)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Support;

    /// Private anonymous pages, unmapped when dropped.
    struct Pages(&'static mut [u8]);

    impl Pages {
        fn new(count: usize, fill: impl Fn(usize) -> u8) -> Self {
            let len = count * page_size();
            // SAFETY: a new mapping, placed by the kernel.
            let start = unsafe {
                libc::mmap(
                    core::ptr::null_mut(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(start, libc::MAP_FAILED);
            // SAFETY: just mapped, readable, writable, zeroed, and owned by this value alone.
            let pages = unsafe { core::slice::from_raw_parts_mut(start.cast::<u8>(), len) };
            for (number, page) in pages.chunks_mut(page_size()).enumerate() {
                page.fill(fill(number));
            }
            Pages(pages)
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: the mapping is this value's, and nothing refers to it any more.
            unsafe { libc::munmap(self.0.as_mut_ptr().cast(), self.0.len()) };
        }
    }

    /// What a merge of good memory must give on this kernel.
    fn assert_expected(result: Result<(), Error>) {
        match support() {
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
    fn rounds_inward() {
        let round = |addr, len| round_inward(addr, len, 0x1000);
        assert_eq!(round(0x1000, 0x2000), Ok(Some((0x1000, 0x2000))));
        assert_eq!(round(0x1001, 0x2000), Ok(Some((0x2000, 0x1000))));
        assert_eq!(round(0x0fff, 0x2002), Ok(Some((0x1000, 0x2000))));
        assert_eq!(round(0x1001, 0x1ffe), Ok(None));
        assert_eq!(round(0x1000, 0xfff), Ok(None));
        assert_eq!(round(0x1000, 0), Ok(None));
        assert_eq!(round(0, 0), Ok(None));
        assert_eq!(round(usize::MAX - 1, 1), Ok(None));
        assert_eq!(round(usize::MAX, 2), Err(Error::Invalid { errno: None }));
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
    fn exact_calls_are_not_rounded() {
        let pages = Pages::new(2, |_| 2);
        let result = merge_exact(pages.0.as_ptr() as usize + 1, page_size());
        assert_eq!(
            result.map_err(|error| error.raw_os_error()),
            Err(Some(libc::EINVAL))
        );
        assert_expected(merge_exact(pages.0.as_ptr() as usize, pages.0.len()));
    }
}
