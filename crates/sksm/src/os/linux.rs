use crate::Region;

/// The advice that hands pages to KSM.
pub(crate) const MERGEABLE: i32 = libc::MADV_MERGEABLE;
/// The advice that undoes what KSM and SKSM have done.
pub(crate) const UNMERGEABLE: i32 = libc::MADV_UNMERGEABLE;

/// Gives the kernel an advice that keeps the contents; or the error number.
pub(crate) fn advise(region: Region, advice: i32) -> Result<(), i32> {
    // libc and no safer wrapper: those take their own enum of advices, which a new number has no place in.
    // SAFETY: merging and its undoing change no content, protection or address, so they are sound on any range, mapped or not.
    // That this kernel's advice is the one that merges, the handshake has shown.
    match unsafe { libc::madvise(region.start as *mut libc::c_void, region.len, advice) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// The size of a page in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It cannot fail; were it to, a rounding to 4 KiB is merely refused by the kernel where pages are larger.
    usize::try_from(size).unwrap_or(4096)
}

/// Where this thread's error number is.
pub(crate) fn errno_location() -> *mut i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe {
        #[cfg(target_os = "android")]
        return libc::__errno();
        #[cfg(not(target_os = "android"))]
        libc::__errno_location()
    }
}

/// The error number of this thread's last failed call.
pub(crate) fn errno() -> i32 {
    // SAFETY: errno's location is valid for this thread.
    unsafe { *errno_location() }
}
