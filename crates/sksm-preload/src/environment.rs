use core::ffi::CStr;

/// A variable of the environment; none in a program that runs with more rights than who started it.
pub fn variable(name: &CStr) -> Option<&'static [u8]> {
    if secure() {
        return None;
    }
    // SAFETY: the name ends in a nul byte; nobody changes the environment before main.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv's answer ends in a nul byte, and lives as long as the environment is left alone: before main, it is.
    Some(unsafe { CStr::from_ptr(value) }.to_bytes())
}

/// Set-uid, set-gid or with file capabilities: whose environment is not to be trusted.
pub fn secure() -> bool {
    // SAFETY: reads what the kernel left at the start.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
