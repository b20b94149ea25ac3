use core::sync::atomic::{AtomicU8, Ordering};

use crate::{Error, Support, os};

/// What the running kernel offers. Asks it once and remembers the answer for this process and its children; keeps `errno`.
///
/// It does not believe the advice's number, which another kernel may have given to another advice: the engine must name it in
/// sysfs or, where that cannot be seen, be in proc where that can, and a page that is mapped for it and merged must keep its
/// bytes. Until that has been shown, no function of this crate gives the advice.
///
/// It says what the kernel knows, not what it will do: with `sksm=off`, or for a process in no merge domain, calls are taken and
/// nothing merges.
///
/// The first call takes six system calls where the advice is known and sysfs can be seen (`madvise`, `statfs`, `open`, `read`,
/// `close`), a dozen where it cannot (also `mmap`, `mremap`, `pipe2`, `write`, `munmap`), elsewhere three of `madvise`. Merging
/// makes it if nobody has.
/// A program that puts itself under a seccomp filter that kills makes it before. What a filter refuses cannot be shown, nor what there
/// is no memory or descriptor for: that counts as not there, and is not remembered; [`require`] tells it apart.
///
/// It may be called in a signal handler. A process that was moved to another machine by a checkpoint still has the old answer.
#[must_use]
pub fn support() -> Support {
    pretended().unwrap_or_else(real)
}

/// The same as a result: why nothing merges, if nothing does. Calls that merge begin with it.
///
/// # Errors
///
/// [`Error::Unsupported`] where the kernel does not merge, [`Error::Undecided`] where that cannot be found out now.
pub fn require() -> Result<(), Error> {
    allowed_to_undo()?;
    match ask() {
        (Support::Merge, _) => Ok(()),
        (instead, Ok(())) => Err(Error::unsupported(instead)),
        (_, Err(errno)) => Err(Error::Undecided { errno }),
    }
}

/// Refuses to undo anything where a test pretends that there is nothing to undo. To undo is KSM's advice, which is the same
/// everywhere.
pub(crate) fn allowed_to_undo() -> Result<(), Error> {
    match pretended() {
        Some(instead @ (Support::Ksm | Support::None)) => Err(Error::unsupported(instead)),
        _ => Ok(()),
    }
}

/// What the kernel itself says.
pub(crate) fn real() -> Support {
    ask().0
}

/// And what keeps it from being certain.
fn ask() -> (Support, Result<(), i32>) {
    // The answer never changes, and two threads that ask at once get the same one: no ordering is needed.
    static ANSWER: AtomicU8 = AtomicU8::new(0);
    if let Some(answer) = Support::from_number(ANSWER.load(Ordering::Relaxed)) {
        return (answer, Ok(()));
    }
    let (answer, certain) = os::ask();
    if certain.is_ok() {
        ANSWER.store(answer as u8, Ordering::Relaxed);
    }
    (answer, certain)
}

#[cfg(not(feature = "test-util"))]
fn pretended() -> Option<Support> {
    None
}

#[cfg(feature = "test-util")]
pub use pretending::pretend_support;
#[cfg(feature = "test-util")]
use pretending::pretended;

#[cfg(feature = "test-util")]
mod pretending {
    use std::cell::Cell;

    use crate::Support;

    thread_local!(static PRETENDED: Cell<Option<Support>> = const { Cell::new(None) });

    /// Makes this thread believe that the kernel offers this, for tests of what a program does on other kernels; `None` ends it.
    ///
    /// While less than [`Support::Merge`] is pretended, merging and its undoing are refused with [`crate::Error::Unsupported`]
    /// without asking the kernel. Pretending more than there is changes only what [`crate::support`] tells.
    ///
    /// ```
    /// sksm::pretend_support(Some(sksm::Support::None));
    /// assert!(matches!(sksm::merge(&vec![7u8; 100_000]), Err(sksm::Error::Unsupported { .. })));
    /// sksm::pretend_support(None);
    /// ```
    pub fn pretend_support(support: Option<Support>) {
        PRETENDED.set(support);
    }

    /// What a test pretends, if one does.
    pub(super) fn pretended() -> Option<Support> {
        PRETENDED.try_with(Cell::get).ok().flatten()
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::support::{real, support};

        #[test]
        fn pretending_is_one_threads_own() {
            pretend_support(Some(Support::None));
            assert_eq!(support(), Support::None);
            let other = std::thread::spawn(support).join().unwrap();
            assert_eq!(other, real());
            pretend_support(None);
            assert_eq!(support(), real());
        }

        #[test]
        fn more_than_there_is_reaches_no_kernel() {
            if real() == Support::Merge {
                return;
            }
            pretend_support(Some(Support::Merge));
            let merged = crate::merge(&vec![7u8; 100_000]);
            pretend_support(None);
            assert!(matches!(merged, Err(crate::Error::Unsupported { .. })));
        }
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    /// Where sysfs can be seen it says the same.
    #[test]
    fn the_answer_is_the_kernels_and_stays() {
        let first = real();
        let sksm = std::path::Path::new("/sys/kernel/mm/sksm").exists();
        assert_eq!(first == Support::Merge, sksm);
        assert_eq!(real(), first);
    }
}
