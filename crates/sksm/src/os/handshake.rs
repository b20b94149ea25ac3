//! Whether the kernel's advice of the number [`MADV_MERGE`] is the one that merges.
//!
//! Another kernel may have given the number to an advice that throws pages away, and does not say so: of an empty range it takes
//! any advice that it knows. Where sysfs can be seen, the engine says there which number is its own, and that is the answer.
//! Elsewhere, and with an engine that does not say it, nothing is advised before
//!
//! * the kernel has not denied it: where sysfs can be seen it has the engine's directory, else where proc can be seen the
//!   engine's counts of a process, beside those of KSM, without which there is no engine;
//! * a page of the caller's own has been through it: it keeps its bytes, can still be read, and is still one mapping with its
//!   neighbours. An advice that marks mappings for later (left out of forks, wiped in them) parts them.
//!
//! Where neither sysfs nor proc can be seen, as in a chroot, the page is reclaimed as well, which is when a page that was freed
//! lazily loses its bytes. An advice that passes all this and does not merge may be taken for the right one there: then nothing is
//! saved, but nothing lost either.
//!
//! That the page was merged is not asked for: it need not be, with `sksm=off`, in no domain, or without memory.
//!
//! What a filter answers instead of the kernel tells nothing, nor what fails for want of memory or a descriptor: unless sysfs or proc
//! deny the engine, that leaves it undecided.

use core::ffi::{CStr, c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr::null_mut;

use super::linux::{errno, errno_location, page_size};
use crate::{MADV_MERGE, Support};

/// What could not be found out, with the error number of what stood against it.
type Doubt = c_int;

/// What the kernel offers; whether it merges may be in doubt.
pub(crate) fn ask() -> (Support, Result<(), Doubt>) {
    // SAFETY: errno's location is valid for this thread's whole life.
    let kept = unsafe { *errno_location() };
    let answer = answer();
    // SAFETY: as above.
    unsafe { *errno_location() = kept };
    answer
}

fn answer() -> (Support, Result<(), Doubt>) {
    // An emulated kernel (QEMU's user mode, gVisor) may wave through any advice for an empty range.
    if accepts(i32::MAX) {
        return (Support::None, Ok(()));
    }
    let merges = match known(MADV_MERGE) {
        0 => handshake(),
        // What kernels say of an advice that they do not know.
        libc::EINVAL => Ok(false),
        refused => unasked(refused),
    };
    let support = if merges == Ok(true) {
        Support::Merge
    } else if accepts(libc::MADV_MERGEABLE) {
        Support::Ksm
    } else {
        Support::None
    };
    (support, merges.map(drop))
}

/// Whether an advice is known: 0, or the error number.
fn known(advice: i32) -> c_int {
    // SAFETY: the range is empty, so no advice can touch memory.
    match unsafe { libc::madvise(null_mut(), 0, advice) } {
        0 => 0,
        _ => errno(),
    }
}

fn accepts(advice: i32) -> bool {
    known(advice) == 0
}

/// Whether the advice is the right one.
fn handshake() -> Result<bool, Doubt> {
    match named() {
        // The engine itself has written it there, of the very advice that it takes: a page that passed or failed could say no more.
        Named::Number(number) => Ok(number == MADV_MERGE),
        Named::Absent => Ok(false),
        Named::Engine => Probe::new()?.keeps(false),
        Named::Unseen => Probe::new()?.keeps(true),
    }
}

/// The same where something else than the kernel has answered for it: a seccomp filter, as a rule.
fn unasked(refused: c_int) -> Result<bool, Doubt> {
    match named() {
        Named::Number(number) if number != MADV_MERGE => Ok(false),
        Named::Absent => Ok(false),
        _ => Err(refused),
    }
}

/// What the kernel says of the engine.
enum Named {
    /// Its advice has this number.
    Number(c_int),
    /// It is there.
    Engine,
    /// It is not.
    Absent,
    /// Nothing can be seen that would tell.
    Unseen,
}

fn named() -> Named {
    const SYSFS_MAGIC: u32 = 0x6265_6572;
    const ADVICE: &CStr = c"/sys/kernel/mm/sksm/advice";
    match file_system(c"/sys/kernel/mm/sksm") {
        Ok(SYSFS_MAGIC) => {
            let mut room = [0; 16];
            let number = read(ADVICE, &mut room).and_then(number);
            return number.map_or(Named::Engine, Named::Number);
        }
        Err(libc::ENOENT) if file_system(c"/sys/kernel/mm") == Ok(SYSFS_MAGIC) => {
            return Named::Absent;
        }
        _ => {}
    }
    match counted() {
        Some(true) => Named::Engine,
        Some(false) => Named::Absent,
        None => Named::Unseen,
    }
}

/// A number that stands alone on a line.
fn number(text: &[u8]) -> Option<c_int> {
    core::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Whether proc has the engine's counts of a process; none if it cannot be seen.
fn counted() -> Option<bool> {
    const PROC_SUPER_MAGIC: u32 = 0x9fa0;
    const COUNTS: &CStr = c"/proc/self/ksm_stat";
    match file_system(COUNTS) {
        Ok(PROC_SUPER_MAGIC) => {}
        // A kernel with the engine has KSM, and so this file: where proc is there, its absence tells.
        Err(libc::ENOENT) if file_system(c"/proc/self/stat") == Ok(PROC_SUPER_MAGIC) => {
            return Some(false);
        }
        _ => return None,
    }
    let mut room = [0; 1024];
    let text = read(COUNTS, &mut room)?;
    let has = |name: &[u8]| text.windows(name.len()).any(|part| part == name);
    has(b"ksm_").then(|| has(b"sksm_"))
}

/// What kind of file system a file is on, or the error number.
fn file_system(path: &CStr) -> Result<u32, c_int> {
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a path that ends in a nul byte, and room for the answer.
    match unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) } {
        // SAFETY: the call has succeeded, so it has filled it.
        0 => Ok(unsafe { found.assume_init() }.f_type as u32),
        _ => Err(errno()),
    }
}

/// The beginning of a file.
fn read<'a>(path: &CStr, room: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: a path that ends in a nul byte.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the room is valid for writes of its length; the descriptor is this function's own.
    let count = unsafe {
        let count = libc::read(fd, room.as_mut_ptr().cast(), room.len());
        libc::close(fd);
        count
    };
    room.get(..usize::try_from(count).ok()?)
}

/// A private anonymous page to try the advice on, between two others.
///
/// It is the same in every process: those of one domain try the advice on one page.
struct Probe {
    start: *mut u8,
    page: usize,
    /// Of the mapping.
    len: usize,
}

impl Probe {
    fn new() -> Result<Self, Doubt> {
        let page = page_size();
        let len = 3 * page;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe { libc::mmap(null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(errno());
        }
        let start = start.cast();
        let probe = Probe { start, page, len };
        let page = probe.page_of(1);
        for at in 0..probe.page {
            // SAFETY: within the second page, which is mapped and writable.
            unsafe { page.add(at).write(pattern(at)) };
        }
        Ok(probe)
    }

    fn page_of(&self, number: usize) -> *mut u8 {
        self.start.wrapping_add(number * self.page)
    }

    /// Gives the advice, and looks whether it has left the page as it was.
    fn keeps(mut self, reclaim: bool) -> Result<bool, Doubt> {
        match self.advise(MADV_MERGE) {
            0 => {}
            // Of an advice for something else, as of a page that it is not meant for.
            libc::EINVAL | libc::EBADF | libc::EIO | libc::EFAULT => return Ok(false),
            // Without memory for it, ended by a signal, or refused by a filter.
            doubt => return Err(doubt),
        }
        if !self.is_one_mapping() {
            return Ok(false);
        }
        if reclaim {
            match self.advise(libc::MADV_PAGEOUT) {
                0 => {}
                doubt => return Err(doubt),
            }
        }
        self.has_its_bytes()
    }

    /// Advises the page alone: 0, or the error number.
    fn advise(&self, advice: c_int) -> c_int {
        // SAFETY: nobody else knows of this page, so whatever becomes of it harms nobody.
        match unsafe { libc::madvise(self.page_of(1).cast(), self.page, advice) } {
            0 => 0,
            _ => errno(),
        }
    }

    /// To make it grow where it is fails in its own way if it is more than one.
    fn is_one_mapping(&mut self) -> bool {
        let longer = self.len + self.page;
        // Not every libc of the crate libc has a function for it.
        // SAFETY: the mapping is this value's; it stays where it is.
        let grown = unsafe { libc::syscall(libc::SYS_mremap, self.start, self.len, longer, 0) };
        match grown {
            -1 => errno() != libc::EFAULT,
            // No kernel moves it unless it may, so any other address is not its answer.
            grown if grown == self.start as libc::c_long => {
                self.len = longer;
                true
            }
            _ => false,
        }
    }

    /// Has the kernel read the page, for which it gives an error where this program would end by a signal.
    fn has_its_bytes(&self) -> Result<bool, Doubt> {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(errno());
        }
        let (page, copy) = (self.page_of(1), self.page_of(2));
        let count = |result: isize| usize::try_from(result).map_err(|_| errno());
        // SAFETY: pages of this value's own mapping, and descriptors of this function's own.
        let (written, read) = unsafe {
            let written = count(libc::write(ends[1], page.cast(), self.page));
            let read = count(libc::read(ends[0], copy.cast(), self.page));
            libc::close(ends[0]);
            libc::close(ends[1]);
            (written, read)
        };
        if written == Err(libc::EFAULT) {
            return Ok(false);
        }
        if written? != self.page || read? != self.page {
            return Err(libc::EAGAIN);
        }
        // SAFETY: the third page is mapped and was not advised.
        Ok((0..self.page).all(|at| unsafe { copy.add(at).read() } == pattern(at)))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast::<c_void>(), self.len) };
    }
}

/// No zeros, and no page of one byte.
fn pattern(at: usize) -> u8 {
    (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_keeps_errno() {
        // SAFETY: errno's location is valid for this thread.
        unsafe { *errno_location() = libc::EXDEV };
        _ = ask();
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::EXDEV)
        );
    }

    #[test]
    fn a_page_that_nothing_happened_to_is_as_it_was() {
        let mut probe = Probe::new().unwrap();
        assert!(probe.is_one_mapping());
        assert_eq!(probe.has_its_bytes(), Ok(true));
        // SAFETY: a page of the probe's own.
        unsafe { probe.page_of(1).write(0) };
        assert_eq!(probe.has_its_bytes(), Ok(false));
    }
}
