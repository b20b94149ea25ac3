use std::fmt;
use std::io;

use sksm::{Region, Support};

/// Why memory cannot be tracked here. Nothing was changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unsupported {
    /// This kernel does not merge; what it has instead.
    Merging(Support),
    /// Whether it merges cannot be found out.
    Undecided(sksm::Error),
    /// No userfaultfd that write-protects asynchronously: not in this kernel (Linux before 6.7, or built without), forbidden by a
    /// seccomp filter, or not on this architecture.
    Userfaultfd(io::Error),
    /// This range cannot be registered: with `EBUSY`, another userfaultfd has it.
    Registering(Region, io::Error),
    /// The kernel does not tell what was written (`PAGEMAP_SCAN`, Linux 6.7).
    PagemapScan(io::Error),
    /// This range is not all of it private anonymous memory that can merge, in whole pages.
    NotPrivate(Region),
    /// There is no private anonymous memory among what was given.
    Nothing,
    /// The mappings of this process could not be read.
    Mappings(sksm::Error),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::Merging(_) => {
                write!(f, "this kernel merges nothing: boot one with CONFIG_SKSM")
            }
            Unsupported::Userfaultfd(error) => write!(
                f,
                "no userfaultfd with asynchronous write protection (Linux 6.7): {error}"
            ),
            Unsupported::Registering(region, error) => {
                write!(f, "userfaultfd does not take {region}: {error}")
            }
            Unsupported::PagemapScan(error) => {
                write!(
                    f,
                    "no PAGEMAP_SCAN of /proc/self/pagemap (Linux 6.7): {error}"
                )
            }
            Unsupported::NotPrivate(region) => {
                write!(
                    f,
                    "{region} is not all private anonymous memory in whole pages"
                )
            }
            Unsupported::Nothing => write!(
                f,
                "no private anonymous memory: what is shared with other processes, or a file's, is not tracked"
            ),
            Unsupported::Undecided(error) | Unsupported::Mappings(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Unsupported {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Unsupported::Userfaultfd(error)
            | Unsupported::Registering(_, error)
            | Unsupported::PagemapScan(error) => Some(error),
            Unsupported::Undecided(error) | Unsupported::Mappings(error) => Some(error),
            Unsupported::Merging(_) | Unsupported::NotPrivate(_) | Unsupported::Nothing => None,
        }
    }
}

/// What stopped a step. All that is known of the memory is forgotten; the next step begins anew.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failed {
    /// The page tables could not be read, or the memory not be registered again after it was mapped anew.
    Looking(io::Error),
    /// A merge failed: what was done so far stays so.
    Merging(sksm::Error),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Looking(error) => write!(f, "the memory cannot be looked at: {error}"),
            Failed::Merging(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Failed::Looking(error) => Some(error),
            Failed::Merging(error) => Some(error),
        }
    }
}
