//! `kernel::error`.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Error(i32);

pub(crate) type Result<T = (), E = Error> = core::result::Result<T, E>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AllocError;

pub(crate) mod code {
    use super::Error;

    pub(crate) const EINTR: Error = Error(-4);
    pub(crate) const EAGAIN: Error = Error(-11);
    pub(crate) const ENOMEM: Error = Error(-12);
}

impl Error {
    pub(crate) fn to_errno(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", -self.0)
    }
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        code::ENOMEM
    }
}

pub(crate) fn to_result(error: i32) -> Result {
    if error < 0 {
        Err(Error(error))
    } else {
        Ok(())
    }
}
