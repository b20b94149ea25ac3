//! What the command's exit status means.

use std::process::ExitCode;

use sksm::Error;

pub const HELP: &str = "Exit status:
  0  all was done
  1  it failed, or its output could not be written
  2  the command line is wrong
  3  this kernel cannot do it
  4  a right is missing
  5  part was done: of the processes that were named, some have exited, or refuse access or all merging
`sksm doctor --require merge` has 3 and 4 for machines that are not ready.
JSON: docs/json.md, /usr/share/doc/sksm/json.md once installed, lists its fields and their units.
`sksm run` ends as the program that it runs; 126: cannot be run, 127: not found.";

pub const FAILED: u8 = 1;
/// Of clap's.
pub const USAGE: u8 = 2;
pub const UNSUPPORTED: u8 = 3;
pub const DENIED: u8 = 4;
pub const PARTLY: u8 = 5;

/// An error in other words, which keeps its status.
#[derive(Debug)]
struct Because {
    status: u8,
    text: String,
}

impl std::fmt::Display for Because {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Because {}

pub fn because(error: &Error, text: &str) -> anyhow::Error {
    with(of_error(error), text)
}

/// An error with a status of its own.
pub fn with(status: u8, text: &str) -> anyhow::Error {
    let text = text.into();
    Because { status, text }.into()
}

fn of_error(error: &Error) -> u8 {
    match error {
        Error::Unsupported { .. } => UNSUPPORTED,
        Error::Denied { .. } => DENIED,
        Error::Read { errno, .. } if denied(*errno) => DENIED,
        // By a filter, and not for want of anything.
        Error::Undecided { .. } if !error.is_transient() => DENIED,
        _ => FAILED,
    }
}

/// The status for an error that ended a verb.
pub fn of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(status(error))
}

/// The same as a number.
pub fn status(error: &anyhow::Error) -> u8 {
    if let Some(because) = error.downcast_ref::<Because>() {
        return because.status;
    }
    match error.downcast_ref::<Error>() {
        Some(error) => of_error(error),
        None => match error.downcast_ref::<std::io::Error>() {
            Some(error) if error.raw_os_error().is_some_and(denied) => DENIED,
            _ => FAILED,
        },
    }
}

fn denied(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES)
}
