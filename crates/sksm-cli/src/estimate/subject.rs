//! Processes that are looked at, and those that cannot be.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use serde::Serialize;
use sksm::{Error, Kinds, Mapping, Process};

use super::memory::Memory;
use crate::domain::Owner;
use crate::reason;
use crate::target::name_of;

/// A process that is looked at.
pub struct Subject {
    pub pid: u32,
    pub name: String,
    /// Who it is for the kernel, which says what its pages may merge with.
    pub owner: Owner,
    pub mappings: Vec<Mapping>,
    /// Whether only its merged pages count.
    pub only_merged: bool,
    /// Kept where descriptors are no question: they go on naming the program that ran at first, and tell when it has gone.
    kept: Option<Arc<Files>>,
    program: Program,
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
    #[serde(skip)]
    pub gone: bool,
}

impl Unread {
    pub fn new(pid: u32, name: String, error: &Error) -> Self {
        Unread {
            pid,
            name,
            reason: reason::of(pid, error),
            denied: reason::denied(error),
            gone: matches!(error, Error::Gone { .. }),
        }
    }
}

/// The files that a process is read by.
pub struct Files {
    pub pagemap: File,
    pub memory: Memory,
}

impl Files {
    pub fn open(pid: u32) -> Result<Self, Error> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap"));
        let pagemap = pagemap.map_err(|error| failed(&error, "/proc/PID/pagemap"))?;
        let memory = Memory::open(pid).map_err(|error| failed(&error, "/proc/PID/mem"))?;
        Ok(Files { pagemap, memory })
    }
}

/// What no two programs have in common that follow each other as one process, or as one number: when the process started, and
/// where the program's code, its stack and its arguments are.
#[derive(PartialEq)]
pub struct Program(Vec<String>);

impl Program {
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        let after = stat.rsplit(|byte| *byte == b')').next();
        let after = String::from_utf8_lossy(after.unwrap_or_default());
        let fields: Vec<&str> = after.split_whitespace().collect();
        // As proc(5) numbers them, of which the first two are before these.
        let numbers = [22, 26, 27, 28, 48, 49].map(|number| number - 3);
        let wanted = numbers.iter().filter_map(|number| fields.get(*number));
        Ok(Program(wanted.map(|field| (*field).to_owned()).collect()))
    }
}

impl Subject {
    pub fn open(pid: u32, kinds: Kinds) -> Result<Self, Error> {
        // First of all: they name the program that runs now.
        let program = Program::of(pid).map_err(|error| failed(&error, "/proc/PID/stat"))?;
        let files = Files::open(pid)?;
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
            owner: Owner::of(pid).map_err(|error| failed(&error, "/proc/PID/ns/user"))?,
            mappings,
            only_merged: false,
            kept: Some(Arc::new(files)),
            program,
            failed: AtomicI32::new(0),
        })
    }

    /// Takes out what the kernel passes over when others ask.
    pub fn leave_what_is_left_alone(&mut self) {
        let whole = self.owner.left_alone(self.pid);
        self.mappings
            .retain(|mapping| !whole && !mapping.passed_over);
    }

    /// Takes out what holds no merged page; where single pages are not told, also what holds others, which may be what is equal.
    pub fn leave_what_is_not_merged(&mut self, told: bool) {
        self.only_merged = true;
        self.mappings.retain(|mapping| {
            let (merged, all) = (mapping.statistics.ksm, mapping.statistics.anonymous);
            merged > 0 && (told || merged >= all)
        });
    }

    /// Gives the descriptors back; from then on files are opened anew each time.
    pub fn release(&mut self) {
        self.kept = None;
    }

    /// What it is read by; fails where another program runs in its place.
    pub fn files(&self) -> Result<Arc<Files>, Error> {
        if let Some(files) = &self.kept {
            return Ok(files.clone());
        }
        let files = Files::open(self.pid)?;
        // After the files were opened: they are those of this program, or tell that it has gone.
        match Program::of(self.pid) {
            Ok(now) if now == self.program => Ok(Arc::new(files)),
            _ => Err(Error::Gone { errno: libc::ESRCH }),
        }
    }

    /// Notes that the look at it has ended early.
    pub fn fail(&self, error: &Error) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.failed.store(errno, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use sksm::Kind;

    #[test]
    fn partly_merged_mappings_count_where_pages_are_told() {
        let kinds = Kinds::of(&Kind::MERGEABLE);
        let left = |told| {
            let mut subject = Subject::open(std::process::id(), kinds).unwrap();
            let mut mapping = subject.mappings[0].clone();
            subject.mappings.clear();
            mapping.statistics.anonymous = 12 << 10;
            for merged in [0, 4, 12] {
                mapping.statistics.ksm = merged << 10;
                subject.mappings.push(mapping.clone());
            }
            subject.leave_what_is_not_merged(told);
            let merged = |mapping: &Mapping| mapping.statistics.ksm >> 10;
            subject.mappings.iter().map(merged).collect::<Vec<_>>()
        };
        assert_eq!((left(true), left(false)), (vec![4, 12], vec![12]));
    }

    #[test]
    fn files_are_opened_anew_for_the_same_program_only() {
        let kinds = Kinds::of(&Kind::MERGEABLE);
        let mut subject = Subject::open(std::process::id(), kinds).unwrap();
        assert!(Arc::ptr_eq(
            &subject.files().unwrap(),
            &subject.files().unwrap()
        ));
        subject.release();
        assert!(!Arc::ptr_eq(
            &subject.files().unwrap(),
            &subject.files().unwrap()
        ));
        subject.program.0[0] += "1";
        assert!(matches!(subject.files(), Err(Error::Gone { .. })));
    }
}
