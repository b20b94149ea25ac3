//! What the command's exit status means.

use std::process::ExitCode;

use sksm::Error;

pub const HELP: &str = "Exit status:
  0  all was done
  1  it failed, or its output could not be written
  2  the command line is wrong
  3  this kernel cannot do it
  4  a right is missing
  5  part was done: some processes have exited, or refuse access or all merging
`sksm run` ends as the program that it runs; 126: cannot be run, 127: not found.";

pub const FAILED: u8 = 1;
pub const UNSUPPORTED: u8 = 3;
pub const DENIED: u8 = 4;
pub const PARTLY: u8 = 5;

/// The status for an error that ended a verb.
pub fn of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(match error.downcast_ref::<Error>() {
        Some(Error::Unsupported { .. }) => UNSUPPORTED,
        Some(Error::Denied { .. }) => DENIED,
        Some(Error::Read { errno, .. }) if denied(*errno) => DENIED,
        _ => match error.downcast_ref::<std::io::Error>() {
            Some(error) if error.raw_os_error().is_some_and(denied) => DENIED,
            _ => FAILED,
        },
    })
}

fn denied(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES)
}
