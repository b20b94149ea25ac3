//! Reading and hashing the pages of processes, in parallel.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use indicatif::ProgressBar;
use serde::Serialize;
use sksm::{Error, Kind, Kinds, Mapping, Process};
use twox_hash::XxHash3_128;

use super::memory::{Memory, Place};
use super::{Page, pagemap};
use crate::doctor;
use crate::domain::User;
use crate::output;
use crate::target::name_of;

/// A process to look at.
pub struct Subject {
    pub pid: u32,
    pub name: String,
    /// What its pages may merge with: a number for its user and user namespace.
    pub domain: u64,
    mappings: Vec<Mapping>,
    pagemap: File,
    memory: Memory,
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
                (true, _) => denied_reason(doctor::ptrace_scope()).into(),
                (_, Error::Gone { .. }) => "has exited".into(),
                _ => error.to_string(),
            },
            denied,
        }
    }
}

/// A process of the same user may be refused as well: by Yama.
fn denied_reason(ptrace_scope: u32) -> &'static str {
    match ptrace_scope {
        0 => "not permitted: run as root, or with CAP_SYS_PTRACE",
        1 | 2 => {
            "not permitted: run as root, or with CAP_SYS_PTRACE, or (for processes of your own) \
             with kernel.yama.ptrace_scope 0"
        }
        _ => "not permitted: kernel.yama.ptrace_scope is 3, which lasts until a reboot",
    }
}

impl Subject {
    pub fn open(pid: u32, kinds: Kinds) -> Result<Self, Error> {
        let open = |name: &str, file: &'static str| {
            let path = format!("/proc/{pid}/{name}");
            File::open(path).map_err(|error| failed(&error, file))
        };
        let mut mappings = Process::open(pid)?.mappings()?;
        mappings.retain(|mapping| {
            kinds.has(mapping.kind) && mapping.statistics.anonymous > 0 && mapping.mergeable
        });
        Ok(Subject {
            pid,
            name: name_of(pid),
            domain: User::of(pid)
                .map_err(|error| failed(&error, "/proc/PID/ns/user"))?
                .number(),
            mappings,
            pagemap: open("pagemap", "/proc/PID/pagemap")?,
            memory: Memory::open(pid).map_err(|error| failed(&error, "/proc/PID/mem"))?,
        })
    }
}

fn failed(error: &std::io::Error, file: &'static str) -> Error {
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::ENOENT | libc::ESRCH => Error::Gone { errno: libc::ESRCH },
        errno => Error::Read { file, errno },
    }
}

/// What was seen.
#[derive(Default)]
pub struct Look {
    pub pages: Vec<Page>,
    pub vanished: u64,
    pub maybe_shared: u64,
    pub bytes: u64,
}

/// So much of a mapping is one piece of work.
const PIECE: usize = 64 << 20;
/// So much is read at once: it stays in a processor's cache until it is hashed.
const CHUNK: usize = 256 << 10;

struct Piece<'a> {
    process: usize,
    subject: &'a Subject,
    mapping: &'a Mapping,
    start: u64,
    end: u64,
}

/// Looks at all pages; a process that exits meanwhile is added to `unread`.
pub fn look(subjects: &[Subject], unread: &mut Vec<Unread>) -> Look {
    let mut pieces = Vec::new();
    let mut total = 0;
    for (process, subject) in subjects.iter().enumerate() {
        for mapping in &subject.mappings {
            total += mapping.statistics.anonymous;
            for start in (mapping.region.start..mapping.region.end()).step_by(PIECE) {
                let end = start.saturating_add(PIECE).min(mapping.region.end());
                pieces.push(Piece {
                    process,
                    subject,
                    mapping,
                    start: start as u64,
                    end: end as u64,
                });
            }
        }
    }
    let bar = output::progress("reading", total);
    let next = AtomicUsize::new(0);
    let gone: Vec<AtomicU64> = subjects.iter().map(|_| AtomicU64::new(0)).collect();
    let result = Mutex::new(Look::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(pieces.len()) {
            scope.spawn(|| {
                let mut worker = Worker::new(&bar);
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Err(error) = worker.read(piece) else {
                        continue;
                    };
                    if let Some(gone) = gone.get(piece.process) {
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        gone.store(errno as u64, Ordering::Relaxed);
                    }
                }
                let mut all = result
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                all.pages.append(&mut worker.look.pages);
                all.vanished += worker.look.vanished;
                all.maybe_shared += worker.look.maybe_shared;
                all.bytes += worker.look.bytes;
            });
        }
    });
    bar.finish_and_clear();
    for (subject, gone) in subjects.iter().zip(&gone) {
        let exited = !std::path::Path::new(&format!("/proc/{}", subject.pid)).exists();
        let error = match gone.load(Ordering::Relaxed) {
            _ if exited => Error::Gone { errno: libc::ESRCH },
            0 => continue,
            errno => failed(
                &std::io::Error::from_raw_os_error(errno as i32),
                "/proc/PID/pagemap",
            ),
        };
        unread.push(Unread::new(subject.pid, subject.name.clone(), &error));
    }
    result
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Worker<'a> {
    look: Look,
    buffer: Vec<u8>,
    bar: &'a ProgressBar,
}

impl<'a> Worker<'a> {
    fn new(bar: &'a ProgressBar) -> Self {
        Worker {
            look: Look::default(),
            buffer: vec![0; CHUNK],
            bar,
        }
    }

    fn read(&mut self, piece: &Piece<'_>) -> std::io::Result<()> {
        let page = sksm::page_size() as u64;
        let kind = match piece.mapping.kind {
            Kind::Text => 0,
            Kind::Data => 1,
            Kind::Heap if piece.mapping.path.as_os_str() == "[heap]" => 2,
            Kind::Stack => 3,
            _ => 4,
        };
        // Where few pages are missing, finding out which costs more than it saves.
        let mapping = piece.mapping;
        let sparse = mapping.statistics.anonymous < mapping.region.len as u64 / 4;
        let most = CHUNK / page as usize;
        let mut places = Vec::with_capacity(most);
        pagemap::each_anonymous(
            &piece.subject.pagemap,
            piece.start..piece.end,
            sparse,
            |addr, entry| {
                if places.len() == most {
                    self.hash(piece, kind, &places);
                    places.clear();
                }
                places.push((addr, entry));
            },
        )?;
        self.hash(piece, kind, &places);
        Ok(())
    }

    fn hash(&mut self, piece: &Piece<'_>, kind: u8, places: &[Place]) {
        let page = sksm::page_size();
        let memory = &piece.subject.memory;
        // Where the mapping holds merged pages, none is known not to be one.
        let merged = piece.mapping.statistics.ksm > 0;
        let mut valid = memory.read(places, merged, &mut self.buffer);
        for (number, place) in places.iter().enumerate() {
            let (addr, entry) = place;
            let Some(bytes) = self.buffer.get_mut(number * page..(number + 1) * page) else {
                return;
            };
            // Behind a page that went meanwhile, one by one.
            if number >= valid && memory.read(&[*place], merged, bytes) == 1 {
                valid = number + 1;
            }
            if number >= valid {
                self.look.vanished += 1;
                continue;
            }
            if entry.pfn() == 0 && !entry.exclusive() {
                self.look.maybe_shared += 1;
            }
            self.look.pages.push(Page {
                hash: XxHash3_128::oneshot(bytes),
                pfn: entry.pfn(),
                addr: *addr,
                process: piece.process as u32,
                kind,
                zero: bytes.iter().all(|byte| *byte == 0),
            });
        }
        let len = (places.len() * page) as u64;
        self.look.bytes += len;
        self.bar.inc(len);
    }
}
