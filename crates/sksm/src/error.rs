use crate::Support;

/// Why a merge was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This kernel does not know the advice.
    #[error("this kernel has no MADV_MERGE; boot a kernel with CONFIG_SKSM")]
    Unsupported {
        /// What this kernel offers instead.
        instead: Support,
        /// The error number.
        errno: i32,
    },
    /// The address is not the start of a page, or the range runs past the end of the address space.
    #[error("a range of memory must start at a page and end within the address space")]
    Invalid {
        /// The error number; none if the range was refused without asking the kernel.
        errno: Option<i32>,
    },
    /// Some of the range is not mapped. The mapped parts are merged.
    #[error("part of the range is not mapped; the mapped parts are merged")]
    Hole {
        /// The error number.
        errno: i32,
    },
    /// The kernel found no memory for its bookkeeping. What was merged so far stays merged.
    #[error("the kernel is out of memory for merging; what was merged so far stays merged")]
    NoMemory {
        /// The error number.
        errno: i32,
    },
    /// A signal ended the call. What was merged so far stays merged.
    #[error("a signal ended the call; what was merged so far stays merged")]
    Interrupted {
        /// The error number.
        errno: i32,
    },
    /// Any other error, for instance a missing permission over the other process.
    #[error("merging failed: {}", reason(*.errno))]
    Os {
        /// The error number.
        errno: i32,
    },
}

impl Error {
    /// The error number that the kernel gave, if it was asked.
    pub fn raw_os_error(&self) -> Option<i32> {
        match *self {
            Error::Invalid { errno } => errno,
            Error::Unsupported { errno, .. }
            | Error::Hole { errno }
            | Error::NoMemory { errno }
            | Error::Interrupted { errno }
            | Error::Os { errno } => Some(errno),
        }
    }

    /// The meaning of `errno` after the kernel refused a merge.
    pub(crate) fn from_errno(errno: i32, support: Support) -> Self {
        match errno {
            libc::EINVAL if support != Support::Merge => Error::Unsupported {
                instead: support,
                errno,
            },
            libc::EINVAL => Error::Invalid { errno: Some(errno) },
            libc::ENOMEM => Error::Hole { errno },
            libc::EAGAIN => Error::NoMemory { errno },
            libc::EINTR => Error::Interrupted { errno },
            _ => Error::Os { errno },
        }
    }
}

#[cfg(feature = "std")]
fn reason(errno: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno)
}

#[cfg(not(feature = "std"))]
fn reason(errno: i32) -> impl core::fmt::Display {
    struct Errno(i32);
    impl core::fmt::Display for Errno {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            write!(f, "error number {}", self.0)
        }
    }
    Errno(errno)
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

    #[test]
    fn einval_means_unsupported_only_where_the_advice_is_unknown() {
        let unsupported = Error::from_errno(libc::EINVAL, Support::Ksm);
        assert_eq!(
            unsupported,
            Error::Unsupported {
                instead: Support::Ksm,
                errno: libc::EINVAL
            }
        );
        assert_eq!(
            Error::from_errno(libc::EINVAL, Support::Merge),
            Error::Invalid {
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
            libc::ESRCH,
        ] {
            for support in [Support::Merge, Support::Ksm, Support::None] {
                let error = Error::from_errno(errno, support);
                assert_eq!(error.raw_os_error(), Some(errno));
                assert_eq!(std::io::Error::from(error).raw_os_error(), Some(errno));
            }
        }
    }
}
