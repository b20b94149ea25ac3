//! What system calls return.

use std::io;

/// Turns the -1 of a system call into the error that errno tells.
pub fn check<T: PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
