//! Processes that are looked at, and those that cannot be.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use serde::Serialize;
use sksm::{Error, Kinds, Mapping, Process};

use super::memory::Memory;
use crate::doctor;
use crate::domain::User;
use crate::target::name_of;

/// A process that is looked at.
pub struct Subject {
    pub pid: u32,
    pub name: String,
    /// What its pages may merge with: a number for its user and user namespace.
    pub domain: u64,
    pub mappings: Vec<Mapping>,
    pub pagemap: File,
    pub memory: Memory,
    /// The error number of what ended the look at it before it was done.
    pub failed: AtomicI32,
}

/// A process that could not be looked at.
#[derive(Serialize)]
pub struct Unread {
    pub pid: u32,
    pub name: String,
    pub reason: String,
    pub denied: bool,
}

impl Unread {
    pub fn new(pid: u32, name: String, error: &Error) -> Self {
        let errno = error.raw_os_error();
        let denied = matches!(errno, Some(libc::EPERM | libc::EACCES));
        Unread {
            pid,
            name,
            reason: match (denied, error) {
                (true, _) => denied_reason(doctor::may_trace(), doctor::ptrace_scope()).into(),
                (_, Error::Gone { .. }) => GONE.into(),
                _ => error.to_string(),
            },
            denied,
        }
    }
}

pub const GONE: &str = "has exited, or runs another program now";

/// A process of the same user may be refused as well: by Yama.
fn denied_reason(may_trace: bool, ptrace_scope: u32) -> &'static str {
    match (may_trace, ptrace_scope) {
        (true, 0..=2) => {
            "not permitted, even with CAP_SYS_PTRACE: it is of another user namespace, or a \
             security module protects it"
        }
        (_, 0) => "not permitted: run as root, or with CAP_SYS_PTRACE",
        (_, 1 | 2) => {
            "not permitted: run as root, or with CAP_SYS_PTRACE, or (for processes of your own) \
             with kernel.yama.ptrace_scope 0"
        }
        _ => "not permitted: kernel.yama.ptrace_scope is 3, which lasts until a reboot",
    }
}

impl Subject {
    pub fn open(pid: u32, kinds: Kinds) -> Result<Self, Error> {
        // Both first: they go on naming the program that runs now, and tell when it has gone.
        let pagemap = File::open(format!("/proc/{pid}/pagemap"));
        let pagemap = pagemap.map_err(|error| failed(&error, "/proc/PID/pagemap"))?;
        let memory = Memory::open(pid).map_err(|error| failed(&error, "/proc/PID/mem"))?;
        let mut mappings = Process::open(pid)?.mappings()?;
        if mappings.is_empty() {
            return Err(Error::Gone { errno: libc::ESRCH });
        }
        mappings.retain(|mapping| {
            kinds.has(mapping.kind) && mapping.statistics.anonymous > 0 && mapping.mergeable
        });
        mappings.shrink_to_fit();
        Ok(Subject {
            pid,
            name: name_of(pid),
            domain: User::of(pid)
                .map_err(|error| failed(&error, "/proc/PID/ns/user"))?
                .number(),
            mappings,
            pagemap,
            memory,
            failed: AtomicI32::new(0),
        })
    }

    pub fn unread(&self) -> Option<Unread> {
        let error = match self.failed.load(Ordering::Relaxed) {
            0 => return None,
            errno => failed(&io::Error::from_raw_os_error(errno), "/proc/PID/pagemap"),
        };
        Some(Unread::new(self.pid, self.name.clone(), &error))
    }
}

fn failed(error: &io::Error, file: &'static str) -> Error {
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::ENOENT | libc::ESRCH => Error::Gone { errno: libc::ESRCH },
        errno => Error::Read { file, errno },
    }
}
