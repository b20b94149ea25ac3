use crate::support::real;
use crate::{Error, Region, os};

/// Gives the kernel an advice that keeps the contents, as it is: nothing rounded, nothing checked before the kernel sees it.
pub(crate) fn advise(region: Region, advice: i32) -> Result<(), Error> {
    os::advise(region, advice).map_err(|errno| match errno {
        // The kernel lets everybody advise their own memory: it is a filter that says so.
        libc::EPERM | libc::EACCES => Error::Os { region, errno },
        _ => Error::from_errno(errno, real(), region),
    })
}
