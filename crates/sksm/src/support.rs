use core::sync::atomic::{AtomicU8, Ordering};

use crate::{Error, MADV_MERGE};

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

impl Support {
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Support::Merge),
            2 => Some(Support::Ksm),
            3 => Some(Support::None),
            _ => None,
        }
    }
}

/// What a test has said that the kernel offers; 0: nothing said.
static PRETENDED: AtomicU8 = AtomicU8::new(0);

/// What the running kernel offers. Asks it once and remembers the answer; keeps `errno`.
pub fn support() -> Support {
    pretended().unwrap_or_else(real)
}

/// Makes this process believe that the kernel offers this, for tests of what a program does on other kernels; `None` ends it.
///
/// While less than [`Support::Merge`] is pretended, merging is refused with [`Error::Unsupported`] without asking the kernel.
/// Pretending more than there is changes only what [`support`] tells.
///
/// ```
/// sksm::pretend_support(Some(sksm::Support::None));
/// assert!(matches!(sksm::merge(&vec![7u8; 100_000]), Err(sksm::Error::Unsupported { .. })));
/// sksm::pretend_support(None);
/// ```
pub fn pretend_support(support: Option<Support>) {
    PRETENDED.store(
        support.map_or(0, |support| support as u8),
        Ordering::Relaxed,
    );
}

fn pretended() -> Option<Support> {
    Support::from_number(PRETENDED.load(Ordering::Relaxed))
}

/// What the kernel itself says.
pub(crate) fn real() -> Support {
    // The answer never changes, and two threads that ask at once get the same one: no ordering is needed.
    static ANSWER: AtomicU8 = AtomicU8::new(0);
    Support::from_number(ANSWER.load(Ordering::Relaxed)).unwrap_or_else(|| {
        let answer = ask();
        ANSWER.store(answer as u8, Ordering::Relaxed);
        answer
    })
}

/// Refuses a merge where a test pretends that there is none.
pub(crate) fn allowed() -> Result<(), Error> {
    match pretended() {
        Some(instead @ (Support::Ksm | Support::None)) => Err(Error::Unsupported {
            instead,
            errno: libc::EINVAL,
        }),
        _ => Ok(()),
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
        let first = real();
        assert_eq!(
            first == Support::Merge,
            accepts(MADV_MERGE) && !accepts(i32::MAX)
        );
        assert_eq!(real(), first);
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
