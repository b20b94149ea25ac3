use std::os::fd::{AsRawFd, BorrowedFd};

use crate::os::errno;
use crate::support::{allowed_to_undo, real, require};
use crate::{Error, MADV_MERGE, Partial, Region};

/// How many ranges the kernel takes in one call (`UIO_MAXIOV`).
const RANGES_PER_CALL: usize = 1024;

/// How many bytes one call asks for. Of more than 2 GiB less a page (`MAX_RW_COUNT`) the kernel leaves out the rest, and says
/// nothing. Longer ranges are cut at multiples of this from their start, so that every piece starts at a page.
const BYTES_PER_CALL: usize = 1 << 30;

/// Merges ranges, given as address and length, of the process that `pidfd` refers to, and tells how many bytes were advised.
///
/// Nothing is rounded. It needs the permissions of `process_madvise(2)`. At the first range that is refused it stops: if any
/// range was done before, it says so by a count below the sum of the lengths, else by the error. Of a range above 1 GiB each
/// GiB counts by itself.
/// [`merge_remote_each`] goes on instead.
///
/// Advised is not merged: of another process's memory the kernel passes over what is locked, left out of dumps or wiped on fork,
/// over processes that are not dumpable, and over those whose merge domain is `none`. That is no error; the counter
/// `pages_refused` of [`crate::SystemStatistics`] tells how much it was.
///
/// # Errors
///
/// [`Error::Unsupported`] and [`Error::Undecided`] as for [`crate::merge`], [`Error::Denied`] without the permissions, [`Error::Gone`] after the end of
/// the process, [`Error::Os`] for a descriptor of no process; of the first range [`Error::Invalid`], [`Error::Hole`],
/// [`Error::NoMemory`] and [`Error::Interrupted`].
pub fn merge_remote(pidfd: BorrowedFd<'_>, ranges: &[(usize, usize)]) -> Result<usize, Error> {
    remote(pidfd, ranges, MADV_MERGE)
}

/// Gives ranges, given as address and length, of the process that `pidfd` refers to physical pages of their own again, and tells
/// how many bytes were advised: [`crate::unmerge_exact`] for another process, with the rights that [`merge_remote`] takes, and it
/// stops as that does. Nothing is passed over.
///
/// ```no_run
/// use std::os::fd::AsFd;
/// # fn undo(pidfd: std::os::fd::OwnedFd) -> Result<(), sksm::Error> {
/// let advised = sksm::unmerge_remote(pidfd.as_fd(), &[(0x7f00_0000_0000, 1 << 20)])?;
/// println!("{} KiB have pages of their own", advised / 1024);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`merge_remote`]; [`Error::Unsupported`] where the kernel does not undo anything in other processes.
pub fn unmerge_remote(pidfd: BorrowedFd<'_>, ranges: &[(usize, usize)]) -> Result<usize, Error> {
    remote(pidfd, ranges, libc::MADV_UNMERGEABLE)
}

fn remote(pidfd: BorrowedFd<'_>, ranges: &[(usize, usize)], advice: i32) -> Result<usize, Error> {
    let ranges: Vec<Region> = ranges.iter().copied().map(Region::from).collect();
    until_refused(&ranges, |call| process_madvise(pidfd, call, advice))
}

/// Merges what can be merged of these ranges of another process: a range that is refused, for instance because it has been
/// unmapped meanwhile, is noted and left out.
///
/// It fails as a whole where no range could do better: without the permission, without such a kernel, after the end of the
/// process.
///
/// # Errors
///
/// [`Error::Unsupported`], [`Error::Undecided`], [`Error::Denied`], [`Error::Gone`], and [`Error::Os`] for a descriptor of no process. Of
/// single ranges they are in [`Partial::refused`].
pub fn merge_remote_each(pidfd: BorrowedFd<'_>, ranges: &[Region]) -> Result<Partial, Error> {
    each(ranges, |call| process_madvise(pidfd, call, MADV_MERGE))
}

/// [`unmerge_remote`] of all of these ranges that it can be done to, as [`merge_remote_each`] goes on.
///
/// # Errors
///
/// As [`merge_remote_each`].
pub fn unmerge_remote_each(pidfd: BorrowedFd<'_>, ranges: &[Region]) -> Result<Partial, Error> {
    each(ranges, |call| {
        process_madvise(pidfd, call, libc::MADV_UNMERGEABLE)
    })
}

/// [`remote`], with any system call.
fn until_refused(
    ranges: &[Region],
    advise: impl Fn(&[Region]) -> Result<usize, Error>,
) -> Result<usize, Error> {
    let mut calls = Calls::new(ranges);
    let mut advised = 0;
    loop {
        match calls.next(&advise) {
            Outcome::Done(done) => advised += done,
            Outcome::End => return Ok(advised),
            Outcome::Refused(error) if advised == 0 => return Err(error),
            Outcome::Refused(_) => return Ok(advised),
        }
    }
}

/// [`merge_remote_each`], with any system call.
fn each(
    ranges: &[Region],
    advise: impl Fn(&[Region]) -> Result<usize, Error>,
) -> Result<Partial, Error> {
    let mut calls = Calls::new(ranges);
    let mut partial = Partial::default();
    loop {
        match calls.next(&advise) {
            Outcome::Done(done) => partial.advised += done,
            Outcome::End => return Ok(partial),
            Outcome::Refused(
                error @ (Error::Unsupported { .. }
                | Error::Undecided { .. }
                | Error::Denied { .. }
                | Error::Gone { .. }),
            ) => return Err(error),
            Outcome::Refused(error @ Error::Os { errno, .. }) if errno == libc::EBADF => {
                return Err(error);
            }
            Outcome::Refused(error) => partial.refused.push(error),
        }
    }
}

/// Ranges cut into calls that the kernel takes whole, each byte in one of them.
struct Calls<'a> {
    /// What is left to do.
    ranges: &'a [Region],
    /// So much of the first is done.
    done: usize,
    /// How many pieces the next call may have.
    pieces: usize,
}

enum Outcome {
    /// So many bytes were advised.
    Done(usize),
    /// The first piece of a call was refused, and is left out.
    Refused(Error),
    /// Nothing is left to do.
    End,
}

impl<'a> Calls<'a> {
    fn new(ranges: &'a [Region]) -> Self {
        let mut calls = Calls {
            ranges,
            done: 0,
            pieces: RANGES_PER_CALL,
        };
        // Past empty ranges.
        calls.advance(0);
        calls
    }

    /// Makes the next call.
    fn next(&mut self, advise: impl Fn(&[Region]) -> Result<usize, Error>) -> Outcome {
        loop {
            let call = self.call();
            let Some(&first) = call.first() else {
                return Outcome::End;
            };
            let asked = if unsound(first) {
                let (region, errno) = (first, None);
                Err(Error::Invalid { region, errno })
            } else {
                advise(&call)
            };
            let error = match asked {
                // No kernel says so; to ask again might never end.
                Ok(0) => Error::from_errno(libc::EIO, real(), first),
                // Less than asked for: what comes next was refused, and the next call tells why.
                Ok(done) => {
                    self.advance(done);
                    self.pieces = RANGES_PER_CALL;
                    return Outcome::Done(done);
                }
                Err(error) => error,
            };
            if error.raw_os_error() != Some(libc::EFAULT) {
                self.advance(first.len);
                return Outcome::Refused(error);
            }
            // One address that no process can have makes the kernel refuse the whole call: find out which.
            if call.len() > 1 {
                self.pieces = call.len() / 2;
                continue;
            }
            // What is above it is no process's either.
            let region = self.rest_of_first().unwrap_or(first);
            self.advance(region.len);
            return Outcome::Refused(Error::from_errno(libc::EFAULT, real(), region));
        }
    }

    /// The pieces of the next call.
    fn call(&self) -> Vec<Region> {
        let mut call = Vec::new();
        let mut room = BYTES_PER_CALL;
        let others = self.ranges.iter().skip(1).copied();
        for rest in self.rest_of_first().into_iter().chain(others) {
            if unsound(rest) {
                // On its own, to be refused as it is.
                if call.is_empty() {
                    call.push(rest);
                }
                break;
            }
            let len = rest.len.min(BYTES_PER_CALL);
            if len > room || call.len() == self.pieces {
                break;
            }
            room -= len;
            if len > 0 {
                call.push(Region { len, ..rest });
            }
        }
        call
    }

    /// What is left of the range that is worked on.
    fn rest_of_first(&self) -> Option<Region> {
        self.ranges.first().map(|first| Region {
            start: first.start.wrapping_add(self.done),
            len: first.len - self.done,
        })
    }

    /// Leaves behind so many bytes, and empty ranges after them.
    fn advance(&mut self, mut bytes: usize) {
        while let Some((first, rest)) = self.ranges.split_first() {
            let left = first.len - self.done;
            if bytes < left {
                self.done += bytes;
                return;
            }
            bytes -= left;
            self.ranges = rest;
            self.done = 0;
        }
    }
}

/// Longer than any address space, or running past its end: not to be cut, as each piece might be a good one.
fn unsound(range: Region) -> bool {
    range.wraps() || isize::try_from(range.len).is_err()
}

/// The error is about the first range: had that been done, the kernel would have told a count.
fn process_madvise(pidfd: BorrowedFd<'_>, ranges: &[Region], advice: i32) -> Result<usize, Error> {
    if advice == MADV_MERGE {
        require()?;
    } else {
        allowed_to_undo()?;
    }
    let vectors: Vec<libc::iovec> = ranges
        .iter()
        .map(|range| libc::iovec {
            iov_base: range.start as *mut libc::c_void,
            iov_len: range.len,
        })
        .collect();
    // SAFETY: the vectors live over the call, and neither advice changes any content, here or in the other process.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len(),
            advice,
            0,
        )
    };
    let first = ranges
        .first()
        .copied()
        .unwrap_or(Region { start: 0, len: 0 });
    usize::try_from(done).map_err(|_| Error::from_errno(errno(), real(), first))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
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

    const GIB: usize = 1 << 30;
    const PAGE: usize = 4096;
    /// What the kernel shortens a call to.
    const MAX_RW_COUNT: usize = 0x7fff_f000;
    /// The end of the address space.
    const TASK_SIZE: usize = 1 << 47;

    /// Takes calls as process_madvise(2) does, and keeps a list of what it has advised.
    #[derive(Default)]
    struct Kernel {
        /// Addresses that are not mapped.
        holes: Vec<usize>,
        advised: RefCell<Vec<Region>>,
        calls: Cell<usize>,
    }

    impl Kernel {
        fn advise(&self, call: &[Region]) -> Result<usize, Error> {
            self.calls.set(self.calls.get() + 1);
            let fail = |errno, region| Err(Error::from_errno(errno, Support::Merge, region));
            let first = call[0];
            if call.len() > RANGES_PER_CALL || call.iter().any(|range| range.len as isize <= 0) {
                return fail(libc::EINVAL, first);
            }
            if call.iter().any(|range| range.end() > TASK_SIZE) {
                return fail(libc::EFAULT, first);
            }
            let mut done = 0;
            for range in call {
                let len = range.len.min(MAX_RW_COUNT - done);
                let errno = if range.start % PAGE != 0 {
                    libc::EINVAL
                } else if self.holes.iter().any(|hole| range.contains(*hole)) {
                    libc::ENOMEM
                } else {
                    done += len;
                    self.advised.borrow_mut().push(Region { len, ..*range });
                    continue;
                };
                return if done > 0 {
                    Ok(done)
                } else {
                    fail(errno, *range)
                };
            }
            Ok(done)
        }

        /// What was advised, neighbours as one.
        fn joined(&self) -> Vec<Region> {
            let mut joined: Vec<Region> = Vec::new();
            for range in self.advised.borrow().iter() {
                match joined.last_mut() {
                    Some(last) if last.end() == range.start => last.len += range.len,
                    _ => joined.push(*range),
                }
            }
            joined
        }
    }

    fn region(start: usize, len: usize) -> Region {
        Region { start, len }
    }

    #[test]
    fn long_ranges_are_advised_to_their_end() {
        // Lengths around what a call takes, each range apart from the next.
        let lens = [
            PAGE,
            GIB - PAGE,
            GIB,
            GIB + PAGE,
            0,
            MAX_RW_COUNT,
            2 * GIB,
            5 * GIB + 17,
            PAGE,
        ];
        let ranges: Vec<Region> = (1..)
            .zip(lens)
            .map(|(number, len)| region(number * 8 * GIB, len))
            .collect();
        let wanted: Vec<Region> = (ranges.iter().copied())
            .filter(|range| range.len > 0)
            .collect();
        let sum = lens.iter().sum();

        let kernel = Kernel::default();
        let partial = each(&ranges, |call| kernel.advise(call)).unwrap();
        assert_eq!((partial.advised, partial.refused), (sum, vec![]));
        assert_eq!(kernel.joined(), wanted);

        let kernel = Kernel::default();
        let advised = until_refused(&ranges, |call| kernel.advise(call));
        assert_eq!(advised, Ok(sum));
        assert_eq!(kernel.joined(), wanted);
    }

    #[test]
    fn of_a_long_range_only_the_refused_piece_is_left_out() {
        let long = region(GIB, 5 * GIB + PAGE);
        let ranges = [region(PAGE, PAGE), long, region(8 * GIB, PAGE)];
        let kernel = Kernel {
            holes: vec![2 * GIB + 7 * PAGE, 6 * GIB],
            ..Kernel::default()
        };
        let partial = each(&ranges, |call| kernel.advise(call)).unwrap();
        let refused = [region(2 * GIB, GIB), region(6 * GIB, PAGE)];
        let errno = libc::ENOMEM;
        assert_eq!(
            partial.refused,
            refused.map(|region| Error::Hole { region, errno })
        );
        assert_eq!(partial.advised, 4 * GIB + 2 * PAGE);
        assert_eq!(
            kernel.joined(),
            [
                ranges[0],
                region(GIB, GIB),
                region(3 * GIB, 3 * GIB),
                ranges[2]
            ]
        );

        // It stops there.
        let kernel = Kernel {
            advised: RefCell::default(),
            ..kernel
        };
        let advised = until_refused(&ranges, |call| kernel.advise(call));
        assert_eq!(advised, Ok(PAGE + GIB));
        assert_eq!(
            until_refused(&ranges[1..], |call| kernel.advise(call)),
            Ok(GIB)
        );
        let (region, errno) = (region(2 * GIB, GIB), libc::ENOMEM);
        assert_eq!(
            until_refused(&[region], |call| kernel.advise(call)),
            Err(Error::Hole { region, errno })
        );
    }

    #[test]
    fn addresses_of_no_process_are_found_out() {
        let mut ranges: Vec<Region> = (1..2000).map(|page| region(page * PAGE, PAGE)).collect();
        let bad = [
            // Past the end of all addresses, longer than them, of the kernel's, and from the last good one on.
            (region(usize::MAX - PAGE + 1, 2 * PAGE), None),
            (region(PAGE, usize::MAX / 2 + 1), None),
            (region(usize::MAX - 2 * PAGE + 1, PAGE), Some(libc::EFAULT)),
            (region(TASK_SIZE - GIB, 3 * GIB), Some(libc::EFAULT)),
        ];
        for (place, (region, _)) in [3, 1030, 1031, 1900].into_iter().zip(bad) {
            ranges.insert(place, region);
        }
        let kernel = Kernel::default();
        let partial = each(&ranges, |call| kernel.advise(call)).unwrap();
        assert_eq!(partial.advised, 1999 * PAGE + GIB);
        let refused = bad.map(|(range, errno)| match range.start {
            // Its first piece is good.
            start if start == TASK_SIZE - GIB => Error::Invalid {
                region: region(TASK_SIZE, 2 * GIB),
                errno,
            },
            _ => Error::Invalid {
                region: range,
                errno,
            },
        });
        assert_eq!(partial.refused, refused);
        assert!(kernel.calls.get() < 100, "{} calls", kernel.calls.get());
    }

    #[test]
    fn a_count_in_the_middle_of_a_range_is_gone_on_from() {
        let seen = RefCell::new(Vec::new());
        let ranges = [region(PAGE, 5 * PAGE), region(GIB, PAGE)];
        let partial = each(&ranges, |call| {
            seen.borrow_mut().push(call[0]);
            Ok(2 * PAGE)
        });
        assert_eq!(
            *seen.borrow(),
            [
                region(PAGE, 5 * PAGE),
                region(3 * PAGE, 3 * PAGE),
                region(5 * PAGE, PAGE)
            ]
        );
        assert_eq!(partial.map(|partial| partial.advised), Ok(6 * PAGE));
    }

    #[test]
    fn a_kernel_that_does_nothing_is_not_asked_for_ever() {
        let ranges = [region(PAGE, PAGE), region(GIB, 2 * GIB)];
        let partial = each(&ranges, |_| Ok(0)).unwrap();
        assert_eq!((partial.advised, partial.refused.len()), (0, 3));
        assert!(until_refused(&ranges, |_| Ok(0)).is_err());
    }

    #[test]
    fn what_concerns_all_ranges_ends_it() {
        let ranges = [region(PAGE, PAGE), region(GIB, PAGE)];
        for errno in [libc::EPERM, libc::EACCES, libc::ESRCH, libc::EBADF] {
            let error = Error::from_errno(errno, Support::Merge, ranges[0]);
            assert_eq!(each(&ranges, |_| Err(error)), Err(error));
        }
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

    /// Kernels without SKSM take this advice for no process, whether they have KSM or not.
    #[test]
    fn undoes_more_ranges_than_one_call_takes() {
        let page = page_size();
        let data = vec![4u8; 4 * page];
        let start = (data.as_ptr() as usize).next_multiple_of(page);
        let ranges = vec![(start, page); RANGES_PER_CALL + 10];
        let regions: Vec<Region> = ranges.iter().copied().map(Region::from).collect();
        let pidfd = own_pidfd();
        let result = unmerge_remote(pidfd.as_fd(), &ranges);
        let each = unmerge_remote_each(pidfd.as_fd(), &regions).map(|partial| partial.advised);
        assert_eq!(result, each);
        if support() == Support::Merge {
            assert_eq!(result, Ok(ranges.len() * page));
        }
        assert!(data.iter().all(|byte| *byte == 4));
    }

    #[test]
    fn no_ranges_is_no_work() {
        assert_eq!(merge_remote(own_pidfd().as_fd(), &[]), Ok(0));
        assert_eq!(unmerge_remote(own_pidfd().as_fd(), &[]), Ok(0));
    }

    #[test]
    fn a_descriptor_of_no_process_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // A kernel that does not merge is asked for no merge.
        if support() == Support::Merge {
            let error = merge_remote(file.as_fd(), &[(0, 4096)]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
            let error = merge_remote_each(file.as_fd(), &[Region::from((0, 4096))]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
        let error = unmerge_remote(file.as_fd(), &[(0, 4096)]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
