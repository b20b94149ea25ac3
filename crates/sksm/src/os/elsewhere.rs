//! Systems that are not Linux: they merge nothing, and say so.

use crate::{Region, Support};

pub(crate) const MERGEABLE: i32 = 12;
pub(crate) const UNMERGEABLE: i32 = 13;

pub(crate) fn ask() -> (Support, Result<(), i32>) {
    (Support::None, Ok(()))
}

pub(crate) fn advise(_: Region, _: i32) -> Result<(), i32> {
    Err(libc::EINVAL)
}

#[cfg(unix)]
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// That of Windows on every processor that it runs on.
#[cfg(not(unix))]
pub(crate) fn page_size() -> usize {
    4096
}
