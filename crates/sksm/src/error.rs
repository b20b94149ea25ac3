use crate::{Region, Support};

/// What failed, on what range, and what to do about it.
///
/// Match with `..`: most variants may be told more about. `Unsupported`, `Undecided`, `Gone` and `Read` are whole, so that a program that finds out
/// by itself, from files in `/proc` for instance, can report the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This kernel does not know the advice, or has not shown that it means merging by it (see [`crate::support`]); nothing was
    /// done. [`crate::advise_ksm`] is the explicit way to KSM where that is offered instead.
    #[error("this kernel has no MADV_MERGE; boot a kernel with CONFIG_SKSM{}", instead_hint(*.instead))]
    Unsupported {
        /// What this kernel offers instead.
        instead: Support,
        /// `EINVAL`, which the kernel gives for an advice that it does not know.
        errno: i32,
    },
    /// Whether this kernel merges cannot be found out (see [`crate::support`]); nothing was done. It may merge all the same: where a
    /// seccomp filter refuses to ask, for whoever is not under it, else later.
    #[error("whether this kernel merges cannot be found out{}", doubt_hint(*.errno))]
    Undecided {
        /// The error number of what could not be done to find it out.
        errno: i32,
    },
    /// The address is not the start of a page, or the range runs past the end of the address space.
    #[error("{region} must start at a page and end within the address space; merge_range rounds")]
    #[non_exhaustive]
    Invalid {
        /// The range as it was given.
        region: Region,
        /// The error number; none if the range was refused without asking the kernel.
        errno: Option<i32>,
    },
    /// Some of the range is not mapped. What was asked for is done to the mapped parts.
    #[error("part of {region} is not mapped; the mapped parts are done, leave the rest out")]
    #[non_exhaustive]
    Hole {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// The kernel found no memory: to merge, for its bookkeeping; to undo it, for the copies. What was done so far stays so.
    #[error(
        "the kernel is out of memory for {region}; what was done so far stays so, try again later"
    )]
    #[non_exhaustive]
    NoMemory {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// A signal ended the call. What was done so far stays so.
    #[error("a signal ended the call for {region}; what was done so far stays so, call again")]
    #[non_exhaustive]
    Interrupted {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// The caller may not advise the other process.
    #[error(
        "not allowed to advise {region} of the other process: run as root, or with CAP_SYS_NICE and \
         the rights that ptrace asks for"
    )]
    #[non_exhaustive]
    Denied {
        /// The range in the other process.
        region: Region,
        /// The error number: `EPERM` without `CAP_SYS_NICE`, `EACCES` without the rights of ptrace.
        errno: i32,
    },
    /// The other process has ended, or never was.
    #[error("there is no such process, or it has ended: its memory has gone with it")]
    Gone {
        /// The error number.
        errno: i32,
    },
    /// The number is that of a thread; a process has that of its first one.
    #[error(
        "{tid} is a thread of process {process}: give that number, all threads share its memory"
    )]
    #[non_exhaustive]
    Thread {
        /// The number as it was given.
        tid: u32,
        /// The process that the thread belongs to.
        process: u32,
    },
    /// A thread of the kernel's own has no memory that could merge.
    #[error("{pid} is a thread of the kernel and has no memory of its own: leave it out")]
    #[non_exhaustive]
    KernelThread {
        /// The number as it was given.
        pid: u32,
    },
    /// The protection of code could not be changed.
    #[error(
        "cannot change the protection of {region}: {}; a security policy may forbid memory that \
         is writable and executable",
        Reason(*.errno)
    )]
    #[non_exhaustive]
    Protect {
        /// The pages of the patch.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// The pages of a patch are not mapped, or not all with one protection.
    #[error("{region} is not mapped throughout with one protection; patch its parts one by one")]
    #[non_exhaustive]
    Mixed {
        /// The pages of the patch.
        region: Region,
    },
    /// The bytes to write are not all within the patch.
    #[error("{region} is not within the range that the patch was begun for; begin it for more")]
    #[non_exhaustive]
    Outside {
        /// Where the bytes were to go.
        region: Region,
    },
    /// No mapping is at the address or of the file that was asked for.
    #[error("no private mapping fits; /proc/self/maps lists what there is")]
    NotMapped,
    /// A file of the kernel's could not be read or understood.
    #[error("cannot read {file}: {}{}", Reason(*.errno), read_hint(*.errno))]
    Read {
        /// Which file.
        file: &'static str,
        /// The error number; `EINVAL` for content that is not understood.
        errno: i32,
    },
    /// Any other error.
    #[error("the call for {region} failed: {}{}", Reason(*.errno), refusal_hint(*.errno))]
    #[non_exhaustive]
    Os {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
}

impl Error {
    /// The error number that the kernel gave, if it was asked and that says what failed.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match *self {
            Error::Invalid { errno, .. } => errno,
            Error::Mixed { .. }
            | Error::Outside { .. }
            | Error::Thread { .. }
            | Error::KernelThread { .. }
            | Error::NotMapped => None,
            Error::Unsupported { errno, .. }
            | Error::Undecided { errno }
            | Error::Hole { errno, .. }
            | Error::NoMemory { errno, .. }
            | Error::Interrupted { errno, .. }
            | Error::Denied { errno, .. }
            | Error::Gone { errno }
            | Error::Protect { errno, .. }
            | Error::Read { errno, .. }
            | Error::Os { errno, .. } => Some(errno),
        }
    }

    /// Whether the same call may do better later: for want of memory or a descriptor, or as a signal ended it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match *self {
            Error::NoMemory { .. } | Error::Interrupted { .. } => true,
            Error::Undecided { errno } => matches!(
                errno,
                libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::EMFILE | libc::ENFILE
            ),
            _ => false,
        }
    }

    /// What a kernel that does not know the advice says, or would.
    pub(crate) fn unsupported(instead: Support) -> Self {
        let errno = libc::EINVAL;
        Error::Unsupported { instead, errno }
    }

    /// The meaning of `errno` after the kernel refused a merge, or to undo one.
    pub(crate) fn from_errno(errno: i32, support: Support, region: Region) -> Self {
        match errno {
            libc::EINVAL if support != Support::Merge => Error::Unsupported {
                instead: support,
                errno,
            },
            // EFAULT: addresses that no process can have.
            libc::EINVAL | libc::EFAULT => Error::Invalid {
                region,
                errno: Some(errno),
            },
            libc::ENOMEM => Error::Hole { region, errno },
            libc::EAGAIN => Error::NoMemory { region, errno },
            libc::EINTR => Error::Interrupted { region, errno },
            libc::EPERM | libc::EACCES => Error::Denied { region, errno },
            libc::ESRCH => Error::Gone { errno },
            _ => Error::Os { region, errno },
        }
    }
}

fn instead_hint(instead: Support) -> &'static str {
    match instead {
        Support::Ksm => ", or ask for KSM explicitly (MADV_MERGEABLE)",
        _ => "",
    }
}

fn doubt_hint(errno: i32) -> &'static str {
    match (Error::Undecided { errno }).is_transient() {
        true => {
            " now, without memory or a free descriptor for it; nothing was done, call again later"
        }
        false => {
            ": something refuses to ask it, as a seccomp filter does; nothing was done, have the \
             filter let madvise with the advice 26 pass"
        }
    }
}

fn read_hint(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => "; run as root, or with CAP_SYS_PTRACE",
        _ => "",
    }
}

fn refusal_hint(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => {
            "; a seccomp filter refuses it, or a security module: have that let madvise pass"
        }
        _ => "",
    }
}

/// An error number in words where there is std.
struct Reason(i32);

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        #[cfg(feature = "std")]
        return write!(f, "{}", std::io::Error::from_raw_os_error(self.0));
        #[cfg(not(feature = "std"))]
        write!(f, "error number {}", self.0)
    }
}

/// The text and the kind stay, for who only shows errors or asks for [`std::io::Error::kind`]; the error itself can be had by
/// [`std::io::Error::downcast`]. So it has no [`std::io::Error::raw_os_error`] any more.
#[cfg(feature = "std")]
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error {
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::Invalid { .. }
            | Error::Hole { .. }
            | Error::Mixed { .. }
            | Error::Outside { .. }
            | Error::Thread { .. }
            | Error::KernelThread { .. } => ErrorKind::InvalidInput,
            Error::Gone { .. } | Error::NotMapped => ErrorKind::NotFound,
            Error::Undecided { .. } if !error.is_transient() => ErrorKind::PermissionDenied,
            Error::NoMemory { .. } | Error::Undecided { .. } => ErrorKind::OutOfMemory,
            Error::Interrupted { .. } => ErrorKind::Interrupted,
            Error::Denied { .. } => ErrorKind::PermissionDenied,
            Error::Protect { errno, .. } | Error::Read { errno, .. } | Error::Os { errno, .. } => {
                std::io::Error::from_raw_os_error(errno).kind()
            }
        };
        std::io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: Region = Region {
        start: 0x1000,
        len: 0x2000,
    };

    #[test]
    fn einval_means_unsupported_only_where_the_advice_is_unknown() {
        let unsupported = Error::from_errno(libc::EINVAL, Support::Ksm, REGION);
        assert_eq!(
            unsupported,
            Error::Unsupported {
                instead: Support::Ksm,
                errno: libc::EINVAL
            }
        );
        assert!(unsupported.to_string().contains("MADV_MERGEABLE"));
        assert_eq!(
            Error::from_errno(libc::EINVAL, Support::Merge, REGION),
            Error::Invalid {
                region: REGION,
                errno: Some(libc::EINVAL)
            }
        );
    }

    #[test]
    fn the_error_number_is_kept() {
        for errno in [
            libc::EINVAL,
            libc::ENOMEM,
            libc::EAGAIN,
            libc::EINTR,
            libc::EPERM,
            libc::EACCES,
            libc::ESRCH,
            libc::EBADF,
        ] {
            for support in [Support::Merge, Support::Ksm, Support::None] {
                let error = Error::from_errno(errno, support, REGION);
                assert_eq!(error.raw_os_error(), Some(errno));
            }
        }
    }

    #[cfg(feature = "std")]
    #[test]
    fn as_an_error_of_io_it_keeps_its_text_and_kind() {
        use std::io::ErrorKind;
        let region = REGION;
        for (error, kind) in [
            (Error::unsupported(Support::Ksm), ErrorKind::Unsupported),
            (
                Error::from_errno(libc::EINVAL, Support::Merge, region),
                ErrorKind::InvalidInput,
            ),
            (
                Error::from_errno(libc::EPERM, Support::Merge, region),
                ErrorKind::PermissionDenied,
            ),
            (
                Error::from_errno(libc::ESRCH, Support::Merge, region),
                ErrorKind::NotFound,
            ),
            (
                Error::from_errno(libc::EAGAIN, Support::Merge, region),
                ErrorKind::OutOfMemory,
            ),
            (
                Error::from_errno(libc::EINTR, Support::Merge, region),
                ErrorKind::Interrupted,
            ),
            (
                Error::Protect {
                    region,
                    errno: libc::EACCES,
                },
                ErrorKind::PermissionDenied,
            ),
            (Error::NotMapped, ErrorKind::NotFound),
            (
                Error::Undecided {
                    errno: libc::EMFILE,
                },
                ErrorKind::OutOfMemory,
            ),
            (
                Error::Undecided { errno: libc::EPERM },
                ErrorKind::PermissionDenied,
            ),
        ] {
            let io = std::io::Error::from(error);
            assert_eq!(io.kind(), kind);
            assert_eq!(io.to_string(), error.to_string());
            assert_eq!(io.downcast::<Error>().unwrap(), error);
        }
    }

    #[test]
    fn the_missing_right_is_named() {
        let read = |errno| Error::Read {
            file: "/proc/PID/smaps",
            errno,
        };
        let own = Error::Os {
            region: REGION,
            errno: libc::EPERM,
        };
        for (error, right) in [
            (read(libc::EACCES), "CAP_SYS_PTRACE"),
            (own, "a seccomp filter"),
            (
                Error::from_errno(libc::EPERM, Support::Merge, REGION),
                "CAP_SYS_NICE",
            ),
        ] {
            assert!(error.to_string().contains(right), "{error}");
        }
        assert!(!read(libc::EIO).to_string().contains("CAP"));
    }

    #[test]
    fn the_range_is_named() {
        for errno in [
            libc::EINVAL,
            libc::ENOMEM,
            libc::EAGAIN,
            libc::EINTR,
            libc::EPERM,
            libc::EBADF,
        ] {
            let text = Error::from_errno(errno, Support::Merge, REGION).to_string();
            assert!(text.contains("0x1000-0x3000"), "{text}");
        }
    }
}
