use crate::support::real;
use crate::{Error, Region, os};

/// Gives the kernel an advice that keeps the contents, as it is: nothing rounded, nothing checked before the kernel sees it.
pub(crate) fn advise(region: Region, advice: i32) -> Result<(), Error> {
    os::advise(region, advice).map_err(|errno| Error::from_errno(errno, real(), region))
}
