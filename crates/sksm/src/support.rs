use core::sync::atomic::{AtomicU8, Ordering};

use crate::MADV_MERGE;

/// What the running kernel offers for sharing equal pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Support {
    /// [`MADV_MERGE`]: pages are merged when the call returns.
    Merge = 1,
    /// Only KSM's `MADV_MERGEABLE`: a kernel thread may find and merge the pages some time later.
    Ksm = 2,
    /// Neither.
    None = 3,
}

/// What the running kernel offers. Asks it once and remembers the answer; keeps `errno`.
pub fn support() -> Support {
    // The answer never changes, and two threads that ask at once get the same one: no ordering is needed.
    static ANSWER: AtomicU8 = AtomicU8::new(0);
    match ANSWER.load(Ordering::Relaxed) {
        1 => Support::Merge,
        2 => Support::Ksm,
        3 => Support::None,
        _ => {
            let answer = ask();
            ANSWER.store(answer as u8, Ordering::Relaxed);
            answer
        }
    }
}

fn ask() -> Support {
    // An emulated kernel (QEMU's user mode, gVisor) may wave through any advice for an empty range.
    let unchecked = accepts(i32::MAX);
    if unchecked {
        Support::None
    } else if accepts(MADV_MERGE) {
        Support::Merge
    } else if accepts(libc::MADV_MERGEABLE) {
        Support::Ksm
    } else {
        Support::None
    }
}

fn accepts(advice: i32) -> bool {
    // SAFETY: glibc's and musl's errno location is valid for this thread's whole life.
    let errno = unsafe { &mut *libc::__errno_location() };
    let kept = *errno;
    // SAFETY: the range is empty, so no advice can touch memory.
    let answer = unsafe { libc::madvise(core::ptr::null_mut(), 0, advice) };
    *errno = kept;
    answer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_kernels_and_stays() {
        let first = support();
        assert_eq!(
            first == Support::Merge,
            accepts(MADV_MERGE) && !accepts(i32::MAX)
        );
        assert_eq!(support(), first);
    }

    #[test]
    fn asking_keeps_errno() {
        // SAFETY: errno's location is valid for this thread.
        unsafe { *libc::__errno_location() = libc::EXDEV };
        ask();
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::EXDEV)
        );
    }
}
