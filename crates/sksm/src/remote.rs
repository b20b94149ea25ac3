use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::errno;
use crate::support::{allowed, real};
use crate::{Error, MADV_MERGE, Region};

/// How many ranges the kernel takes in one call (`UIO_MAXIOV`).
const RANGES_PER_CALL: usize = 1024;

/// Merges ranges, given as address and length, of the process that `pidfd` refers to, and tells how many bytes were advised.
///
/// Nothing is rounded. It needs the permissions of `process_madvise(2)`. At the first range that is refused it stops: if any
/// range was done before, it says so by a count below the sum of the lengths, else by the error.
/// [`merge_remote_each`] goes on instead.
pub fn merge_remote(pidfd: BorrowedFd<'_>, ranges: &[(usize, usize)]) -> Result<usize, Error> {
    let mut advised = 0;
    for chunk in ranges.chunks(RANGES_PER_CALL) {
        let wanted: usize = chunk
            .iter()
            .fold(0, |sum, (_, len)| sum.saturating_add(*len));
        let done = match merge_chunk(pidfd, chunk) {
            Err(error) if advised == 0 => return Err(error),
            result => result.unwrap_or(0),
        };
        advised += done;
        if done < wanted {
            break;
        }
    }
    Ok(advised)
}

/// What became of each range of a call that goes on after refusals.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Partial {
    /// The sum of the lengths of all ranges that were advised as a whole.
    pub advised: usize,
    /// Why others were not, each error with its range.
    pub refused: Vec<Error>,
}

/// Merges what can be merged of these ranges of another process: a range that is refused, for instance because it has been
/// unmapped meanwhile, is noted and left out.
///
/// It fails as a whole where no range could do better: without the permission, without such a kernel, after the end of the
/// process.
pub fn merge_remote_each(pidfd: BorrowedFd<'_>, ranges: &[Region]) -> Result<Partial, Error> {
    let mut partial = Partial::default();
    let ranges: Vec<(usize, usize)> = ranges
        .iter()
        .filter(|range| range.len > 0)
        .map(|range| (range.start, range.len))
        .collect();
    let mut rest = ranges.as_slice();
    while !rest.is_empty() {
        let now = rest.get(..RANGES_PER_CALL).unwrap_or(rest);
        let count = match merge_chunk(pidfd, now) {
            Ok(mut done) => {
                partial.advised += done;
                // The kernel counts whole ranges. None at all would have been an error.
                let whole = now.iter().take_while(|(_, len)| {
                    let whole = *len <= done;
                    done = done.saturating_sub(*len);
                    whole
                });
                whole.count().max(1)
            }
            Err(
                error @ (Error::Unsupported { .. } | Error::Denied { .. } | Error::Gone { .. }),
            ) => return Err(error),
            Err(error @ Error::Os { errno, .. }) if errno == libc::EBADF => return Err(error),
            Err(error) => {
                partial.refused.push(error);
                1
            }
        };
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(partial)
}

/// The error is about the first range: had that been done, the kernel would have told a count.
fn merge_chunk(pidfd: BorrowedFd<'_>, ranges: &[(usize, usize)]) -> Result<usize, Error> {
    allowed()?;
    let vectors: Vec<libc::iovec> = ranges
        .iter()
        .map(|&(addr, len)| libc::iovec {
            iov_base: addr as *mut libc::c_void,
            iov_len: len,
        })
        .collect();
    // SAFETY: the vectors live over the call, and merging changes no content, here or in the other process.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len(),
            MADV_MERGE,
            0,
        )
    };
    let first = ranges.first().copied().unwrap_or_default();
    usize::try_from(done).map_err(|_| Error::from_errno(errno(), real(), first.into()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    use super::*;
    use crate::{Support, page_size, support};

    fn own_pidfd() -> OwnedFd {
        // SAFETY: opens a new descriptor, or fails.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
        assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        // SAFETY: a new descriptor that nothing else owns.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    }

    #[test]
    fn merges_more_ranges_than_one_call_takes() {
        let page = page_size();
        let data = vec![3u8; 4 * page];
        let start = (data.as_ptr() as usize).next_multiple_of(page);
        let ranges = vec![(start, page); RANGES_PER_CALL + 10];
        let result = merge_remote(own_pidfd().as_fd(), &ranges);
        match support() {
            Support::Merge => assert_eq!(result, Ok(ranges.len() * page)),
            _ => assert_eq!(
                result.map_err(|error| error.raw_os_error()),
                Err(Some(libc::EINVAL))
            ),
        }
        assert!(data.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn no_ranges_is_no_work() {
        assert_eq!(merge_remote(own_pidfd().as_fd(), &[]), Ok(0));
    }

    #[test]
    fn a_descriptor_of_no_process_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = merge_remote(file.as_fd(), &[(0, 0)]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let error = merge_remote_each(file.as_fd(), &[Region::from((0, 4096))]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
