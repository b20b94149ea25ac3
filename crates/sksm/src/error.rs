use crate::{Region, Support};

/// What failed, on what range, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This kernel does not know the advice. [`crate::advise_ksm`] is the explicit way to KSM where that is offered instead.
    #[error("this kernel has no MADV_MERGE; boot a kernel with CONFIG_SKSM{}", instead_hint(*.instead))]
    Unsupported {
        /// What this kernel offers instead.
        instead: Support,
        /// The error number.
        errno: i32,
    },
    /// The address is not the start of a page, or the range runs past the end of the address space.
    #[error("{region} must start at a page and end within the address space; merge_range rounds")]
    Invalid {
        /// The range as it was given.
        region: Region,
        /// The error number; none if the range was refused without asking the kernel.
        errno: Option<i32>,
    },
    /// Some of the range is not mapped. The mapped parts are merged.
    #[error("part of {region} is not mapped; the mapped parts are merged, leave the rest out")]
    Hole {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// The kernel found no memory for its bookkeeping. What was merged so far stays merged.
    #[error(
        "the kernel is out of memory for merging {region}; what was merged so far stays merged, \
         try again later"
    )]
    NoMemory {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// A signal ended the call. What was merged so far stays merged.
    #[error(
        "a signal ended the merge of {region}; what was merged so far stays merged, call again"
    )]
    Interrupted {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// The caller may not advise the other process.
    #[error(
        "not allowed to merge {region} of the other process: run as root, or with CAP_SYS_NICE and \
         the rights that ptrace asks for"
    )]
    Denied {
        /// The range in the other process.
        region: Region,
        /// The error number: `EPERM` without `CAP_SYS_NICE`, `EACCES` without the rights of ptrace.
        errno: i32,
    },
    /// The other process has ended, or never was.
    #[error("there is no such process, or it has ended: nothing is left to merge")]
    Gone {
        /// The error number.
        errno: i32,
    },
    /// The number is that of a thread; a process has that of its first one.
    #[error(
        "{tid} is a thread of process {process}: give that number, all threads share its memory"
    )]
    Thread {
        /// The number as it was given.
        tid: u32,
        /// The process that the thread belongs to.
        process: u32,
    },
    /// A thread of the kernel's own has no memory that could merge.
    #[error("{pid} is a thread of the kernel and has no memory of its own: leave it out")]
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
    Protect {
        /// The pages of the patch.
        region: Region,
        /// The error number.
        errno: i32,
    },
    /// The pages of a patch are not mapped, or not all with one protection.
    #[error("{region} is not mapped throughout with one protection; patch its parts one by one")]
    Mixed {
        /// The pages of the patch.
        region: Region,
    },
    /// A patch was begun by a thread that already had one.
    #[error("this thread is patching already; finish that patch before the one of {region}")]
    Nested {
        /// The range of the second patch.
        region: Region,
    },
    /// The bytes to write are not all within the patch.
    #[error("{region} is not within the range that the patch was begun for; begin it for more")]
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
    #[error("merging {region} failed: {}", Reason(*.errno))]
    Os {
        /// The range as it was given.
        region: Region,
        /// The error number.
        errno: i32,
    },
}

impl Error {
    /// The error number that the kernel gave, if it was asked and that says what failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        match *self {
            Error::Invalid { errno, .. } => errno,
            Error::Mixed { .. }
            | Error::Nested { .. }
            | Error::Outside { .. }
            | Error::Thread { .. }
            | Error::KernelThread { .. }
            | Error::NotMapped => None,
            Error::Unsupported { errno, .. }
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

    /// The meaning of `errno` after the kernel refused a merge.
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

fn read_hint(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => "; run as root, or with CAP_SYS_PTRACE",
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

/// The error number of this thread's last failed call.
pub(crate) fn errno() -> i32 {
    // SAFETY: errno's location is valid for this thread.
    unsafe { *libc::__errno_location() }
}

#[cfg(feature = "std")]
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => std::io::Error::from_raw_os_error(errno),
            None => std::io::Error::new(std::io::ErrorKind::InvalidInput, error),
        }
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
                assert_eq!(std::io::Error::from(error).raw_os_error(), Some(errno));
            }
        }
    }

    #[test]
    fn the_missing_right_is_named() {
        let read = |errno| Error::Read {
            file: "/proc/PID/smaps",
            errno,
        };
        for (error, right) in [
            (read(libc::EACCES), "CAP_SYS_PTRACE"),
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
