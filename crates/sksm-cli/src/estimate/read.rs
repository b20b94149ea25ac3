//! Reading and hashing the pages of processes, in parallel.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;
use serde::Serialize;
use sksm::{Error, Kind, Kinds, Mapping, Process};
use twox_hash::XxHash3_64;

use super::frames::Hashes;
use super::memory::{Memory, Place};
use super::page::Page;
use super::pagemap;
use crate::doctor;
use crate::domain::User;
use crate::target::name_of;

/// A process that is looked at.
pub struct Subject {
    pub pid: u32,
    pub name: String,
    /// What its pages may merge with: a number for its user and user namespace.
    pub domain: u64,
    mappings: Vec<Mapping>,
    pagemap: File,
    memory: Memory,
    /// The error number of what ended the look at it before it was done.
    failed: AtomicI32,
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
                (_, Error::Gone { .. }) => GONE.into(),
                _ => error.to_string(),
            },
            denied,
        }
    }
}

const GONE: &str = "has exited, or runs another program now";

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
    fn open(pid: u32, kinds: Kinds) -> Result<Self, Error> {
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

    fn unread(&self) -> Option<Unread> {
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

/// How to look.
#[derive(Clone, Copy)]
pub struct How {
    pub kinds: Kinds,
    /// Whether there will be a second look.
    pub again: bool,
}

/// What was seen.
#[derive(Default)]
pub struct Look {
    /// Of each process that was asked for; none of those that could not be looked at.
    pub subjects: Vec<Option<Arc<Subject>>>,
    /// Sorted parts, one of each thread.
    pub pages: Vec<Vec<Page>>,
    /// In the order of their numbers.
    pub unread: Vec<Unread>,
    /// What the second look compares with.
    pub before: Before,
    pub vanished: u64,
    /// So much was read.
    pub bytes: u64,
}

/// What pieces of memory held: of each page its place in the piece, and as much of its hash as fits.
#[derive(Default)]
pub struct Before {
    /// One part of each thread, which grows without being copied.
    parts: Vec<Vec<u64>>,
    /// Where in them a piece is, by its process and start.
    pieces: HashMap<(u32, u64), (usize, Range<usize>)>,
}

impl Before {
    fn of(&self, piece: &Piece) -> &[u64] {
        let found = self.pieces.get(&piece.key());
        let held = found.and_then(|(part, range)| self.parts.get(*part)?.get(range.clone()));
        held.unwrap_or_default()
    }
}

/// So much of a mapping is one piece of work.
const PIECE: usize = 64 << 20;
/// And so much of one in which few pages are present.
const SPARSE_PIECE: usize = 4 << 30;
/// So many pages are read at once: they stay in a processor's cache until they are hashed.
const AT_ONCE: usize = 128;

/// Looks at all private pages of these processes.
pub fn look(pids: &[u32], how: How, bar: &ProgressBar) -> Look {
    let subjects = vec![None; pids.len()];
    let queue = Queue::new(subjects, pids.len());
    let open = |number: usize| Subject::open(pids[number], how.kinds);
    let mut look = work(&queue, &open, how, None, bar);
    let Opened { subjects, unread } = queue.opened();
    look.unread = unread
        .into_iter()
        .map(|(number, error)| Unread::new(pids[number], name_of(pids[number]), &error))
        .collect();
    look.subjects = subjects;
    leave_out(&mut look);
    look
}

/// Looks once more at what was seen, and keeps the pages that are unchanged.
pub fn look_again(
    subjects: &[Option<Arc<Subject>>],
    before: &Before,
    how: How,
    bar: &ProgressBar,
) -> Look {
    let queue = Queue::new(subjects.to_vec(), 0);
    let open = |_| Err(Error::NotMapped);
    let how = How {
        again: false,
        ..how
    };
    let mut look = work(&queue, &open, how, Some(before), bar);
    look.subjects = subjects.to_vec();
    leave_out(&mut look);
    look
}

/// Takes out the pages of processes that were not seen to the end, and puts the others in order.
fn leave_out(look: &mut Look) {
    let gone: Vec<Option<Unread>> = (look.subjects.iter())
        .map(|subject| subject.as_ref()?.unread())
        .collect();
    for (subject, gone) in look.subjects.iter_mut().zip(&gone) {
        if gone.is_some() {
            *subject = None;
        }
    }
    let any = gone.iter().any(Option::is_some);
    std::thread::scope(|scope| {
        for part in &mut look.pages {
            scope.spawn(|| {
                if any {
                    part.retain(|page| gone.get(page.process()).is_none_or(Option::is_none));
                }
                part.sort_unstable();
            });
        }
    });
    look.unread.extend(gone.into_iter().flatten());
    look.unread.sort_by_key(|unread| unread.pid);
}

/// What is left to do: processes to open, and mappings of those that are.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    opened: Opened,
    /// The next process to open, of so many.
    next: usize,
    processes: usize,
    /// Threads that are opening one.
    opening: usize,
    rest: VecDeque<Rest>,
}

struct Opened {
    subjects: Vec<Option<Arc<Subject>>>,
    unread: Vec<(usize, Error)>,
}

/// What is left of a mapping.
struct Rest {
    process: usize,
    subject: Arc<Subject>,
    mapping: usize,
    start: usize,
}

enum Work {
    Open(usize),
    Read(Piece),
}

/// Part of a mapping.
struct Piece {
    process: usize,
    subject: Arc<Subject>,
    mapping: usize,
    start: u64,
    end: u64,
}

impl Piece {
    fn key(&self) -> (u32, u64) {
        (self.process as u32, self.start)
    }

    fn mapping(&self) -> &Mapping {
        &self.subject.mappings[self.mapping]
    }
}

impl Queue {
    /// Of processes that are opened already, and so many that are not.
    fn new(subjects: Vec<Option<Arc<Subject>>>, processes: usize) -> Self {
        let mut rest = VecDeque::new();
        for (process, subject) in subjects.iter().enumerate() {
            rest.extend(
                subject
                    .iter()
                    .flat_map(|subject| Rest::of(process, subject)),
            );
        }
        Queue {
            state: Mutex::new(State {
                opened: Opened {
                    subjects,
                    unread: Vec::new(),
                },
                next: 0,
                processes,
                opening: 0,
                rest,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mappings first: the less time passes after a process was opened, the more is as it was then.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if let Some(piece) = state.piece() {
                return Some(Work::Read(piece));
            }
            if state.next < state.processes {
                state.next += 1;
                state.opening += 1;
                return Some(Work::Open(state.next - 1));
            }
            if state.opening == 0 {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn opened_one(&self, process: usize, subject: Result<Subject, Error>) {
        let mut state = self.lock();
        state.opening -= 1;
        match subject {
            Ok(subject) => {
                let subject = Arc::new(subject);
                state.rest.extend(Rest::of(process, &subject));
                state.opened.subjects[process] = Some(subject);
            }
            Err(error) => state.opened.unread.push((process, error)),
        }
        self.changed.notify_all();
    }

    fn opened(self) -> Opened {
        let state = self.state.into_inner();
        state.unwrap_or_else(PoisonError::into_inner).opened
    }
}

impl State {
    fn piece(&mut self) -> Option<Piece> {
        let rest = self.rest.front_mut()?;
        let mapping = &rest.subject.mappings[rest.mapping];
        let most = if sparse(mapping) { SPARSE_PIECE } else { PIECE };
        let (start, last) = (rest.start, mapping.region.end());
        let end = start.saturating_add(most).min(last);
        rest.start = end;
        let piece = Piece {
            process: rest.process,
            subject: rest.subject.clone(),
            mapping: rest.mapping,
            start: start as u64,
            end: end as u64,
        };
        if end == last {
            self.rest.pop_front();
        }
        Some(piece)
    }
}

impl Rest {
    fn of(process: usize, subject: &Arc<Subject>) -> impl Iterator<Item = Rest> {
        let mappings = subject.mappings.iter().enumerate();
        mappings.map(move |(number, mapping)| Rest {
            process,
            subject: subject.clone(),
            mapping: number,
            start: mapping.region.start,
        })
    }
}

/// Where few pages are missing, finding out which costs more than it saves.
fn sparse(mapping: &Mapping) -> bool {
    mapping.statistics.anonymous < mapping.region.len as u64 / 4
}

/// Does all the work on all processors.
fn work(
    queue: &Queue,
    open: &(impl Fn(usize) -> Result<Subject, Error> + Sync),
    how: How,
    before: Option<&Before>,
    bar: &ProgressBar,
) -> Look {
    let hashes = Hashes::new();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let mut worker = Worker::new(how, &hashes, before, bar);
                scope.spawn(move || {
                    while let Some(work) = queue.next() {
                        match work {
                            Work::Open(process) => queue.opened_one(process, open(process)),
                            Work::Read(piece) => worker.read(&piece),
                        }
                    }
                    worker
                })
            })
            .collect();
        let mut all = Look::default();
        for worker in workers.into_iter().filter_map(|worker| worker.join().ok()) {
            let part = all.pages.len();
            let pieces = worker.pieces.into_iter();
            let pieces = pieces.map(|(key, range)| (key, (part, range)));
            all.before.pieces.extend(pieces);
            all.before.parts.push(worker.held);
            all.pages.push(worker.pages);
            all.vanished += worker.vanished;
            all.bytes += worker.bytes;
        }
        all
    })
}

struct Worker<'a> {
    pages: Vec<Page>,
    /// What the pieces held, for a second look, and where that is.
    held: Vec<u64>,
    pieces: Vec<((u32, u64), Range<usize>)>,
    vanished: u64,
    bytes: u64,
    buffer: Vec<u8>,
    how: How,
    hashes: &'a Hashes,
    /// Of a page of zeros.
    zero: u64,
    before: Option<&'a Before>,
    bar: &'a ProgressBar,
}

/// The piece that is being read.
struct Current<'a> {
    piece: &'a Piece,
    kind: u8,
    /// Whether the mapping holds merged pages: then none is known not to be one.
    merged: bool,
    /// What it held at the first look.
    before: Option<&'a [u64]>,
}

impl<'a> Worker<'a> {
    fn new(how: How, hashes: &'a Hashes, before: Option<&'a Before>, bar: &'a ProgressBar) -> Self {
        Worker {
            pages: Vec::new(),
            held: Vec::new(),
            pieces: Vec::new(),
            vanished: 0,
            bytes: 0,
            buffer: vec![0; AT_ONCE * sksm::page_size()],
            how,
            hashes,
            zero: hash_of_zeros(),
            before,
            bar,
        }
    }

    fn read(&mut self, piece: &Piece) {
        let (subject, mapping) = (&piece.subject, piece.mapping());
        if subject.failed.load(Ordering::Relaxed) != 0 {
            return;
        }
        let start = self.held.len();
        let current = Current {
            piece,
            kind: kind(mapping),
            merged: mapping.statistics.ksm > 0,
            before: self.before.map(|before| before.of(piece)),
        };
        let mut places = Vec::with_capacity(AT_ONCE);
        let range = piece.start..piece.end;
        let done = pagemap::each_anonymous(
            &subject.pagemap,
            range,
            sparse(mapping),
            AT_ONCE,
            |addr, entry| {
                places.push((addr, entry));
                if places.len() == AT_ONCE {
                    self.hash(&current, &mut places);
                }
            },
        );
        self.hash(&current, &mut places);
        if let Err(error) = done {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            subject.failed.store(errno, Ordering::Relaxed);
        }
        if self.how.again {
            self.pieces.push((piece.key(), start..self.held.len()));
        }
    }

    /// Hashes these pages, and empties the list.
    fn hash(&mut self, current: &Current<'_>, places: &mut Vec<Place>) {
        self.bar.inc((places.len() * sksm::page_size()) as u64);
        let zeros_left_out = places.iter().all(own) || leave_out_zero_page(current.piece, places);
        // Of frames that were read for another process the hash is known.
        let known = |(_, entry): &Place| match entry.pfn() {
            0 => None,
            _ if entry.exclusive() => None,
            frame => self.hashes.get(frame),
        };
        let mut hashes: Vec<Option<u64>> = places.iter().map(known).collect();
        if hashes.iter().all(Option::is_none) {
            self.read_all(current, places, &mut hashes);
        } else {
            let unknown = places
                .iter()
                .zip(&hashes)
                .filter(|(_, hash)| hash.is_none());
            let unknown: Vec<Place> = unknown.map(|(place, _)| *place).collect();
            let mut read = vec![None; unknown.len()];
            self.read_all(current, &unknown, &mut read);
            let mut read = read.into_iter();
            for hash in hashes.iter_mut().filter(|hash| hash.is_none()) {
                *hash = read.next().flatten();
            }
        }
        for (place, hash) in places.drain(..).zip(hashes) {
            match hash {
                None => self.vanished += 1,
                // Without the call that tells them apart, most likely the zero page.
                Some(hash) if !zeros_left_out && !own(&place) && hash == self.zero => {}
                Some(hash) => self.keep(current, place, hash),
            }
        }
    }

    fn read_all(&mut self, current: &Current<'_>, places: &[Place], hashes: &mut [Option<u64>]) {
        let page = sksm::page_size();
        let memory = &current.piece.subject.memory;
        let mut valid = memory.read(places, current.merged, &mut self.buffer);
        let room = self.buffer.chunks_exact_mut(page);
        for (number, ((place, hash), bytes)) in places.iter().zip(hashes).zip(room).enumerate() {
            // Behind a page that went meanwhile, one by one.
            if number >= valid && memory.read(&[*place], current.merged, bytes) == 1 {
                valid = number + 1;
            }
            if number >= valid {
                continue;
            }
            let found = XxHash3_64::oneshot(bytes);
            *hash = Some(found);
            self.bytes += page as u64;
            if !own(place) && place.1.pfn() != 0 {
                self.hashes.insert(place.1.pfn(), found);
            }
        }
    }

    fn keep(&mut self, current: &Current<'_>, (addr, entry): Place, hash: u64) {
        let page = sksm::page_size() as u64;
        let number = (addr - current.piece.start) / page;
        let held = number << 40 | hash >> 24;
        if current
            .before
            .is_some_and(|before| before.binary_search(&held).is_err())
        {
            return;
        }
        if self.how.again {
            self.held.push(held);
        }
        let frame = match entry.pfn() {
            _ if entry.exclusive() => 0,
            // Unknown. What a fork has left in common is at one address.
            0 => addr / page,
            frame => frame,
        };
        let process = current.piece.process as u32;
        self.pages
            .push(Page::new(hash, frame, process, current.kind));
    }
}

/// Whether no other process has the page.
fn own((_, entry): &Place) -> bool {
    entry.exclusive()
}

/// Leaves the zero page out, which is mapped where a page was only read; false if it cannot be told.
fn leave_out_zero_page(piece: &Piece, places: &mut Vec<Place>) -> bool {
    let (Some((first, _)), Some((last, _))) = (places.first(), places.last()) else {
        return true;
    };
    let Some(zero) = pagemap::zero_pages(&piece.subject.pagemap, *first..last + 1) else {
        return false;
    };
    places.retain(|(addr, _)| !zero.iter().any(|zero| zero.contains(addr)));
    true
}

fn kind(mapping: &Mapping) -> u8 {
    match mapping.kind {
        Kind::Text => 0,
        Kind::Data => 1,
        Kind::Heap if mapping.path.as_os_str() == "[heap]" => 2,
        Kind::Stack => 3,
        _ => 4,
    }
}

pub fn hash_of_zeros() -> u64 {
    XxHash3_64::oneshot(&vec![0; sksm::page_size()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was read of it before that is not counted either.
    #[test]
    fn a_process_that_went_meanwhile_is_left_out() {
        let own = std::process::id();
        let subject = || Subject::open(own, Kinds::of(&Kind::MERGEABLE)).unwrap();
        let gone = subject();
        gone.failed.store(libc::ESRCH, Ordering::Relaxed);
        let page = |process| Page::new(7, 0, process, 0);
        let mut look = Look {
            subjects: vec![Some(Arc::new(gone)), Some(Arc::new(subject())), None],
            pages: vec![vec![page(1), page(0)], vec![page(0)]],
            ..Look::default()
        };
        leave_out(&mut look);
        assert_eq!(look.pages, [vec![page(1)], vec![]]);
        assert!(look.subjects[0].is_none() && look.subjects[1].is_some());
        assert_eq!(look.unread.len(), 1);
        assert_eq!(look.unread[0].reason, GONE);
    }

    /// Every byte of every mapping once, whichever thread takes it.
    #[test]
    fn mappings_are_cut_into_pieces() {
        let mut subject = Subject::open(std::process::id(), Kinds::of(&Kind::MERGEABLE)).unwrap();
        let mut mapping = subject.mappings[0].clone();
        mapping.region.len = 3 * PIECE + 4096;
        mapping.statistics.anonymous = mapping.region.len as u64;
        let mut sparse = mapping.clone();
        sparse.statistics.anonymous = 4096;
        subject.mappings = vec![mapping, sparse];
        let queue = Queue::new(vec![None, Some(Arc::new(subject))], 0);
        let mut pieces = Vec::new();
        while let Some(Work::Read(piece)) = queue.next() {
            assert_eq!(piece.process, 1);
            pieces.push((piece.mapping, piece.start, piece.end));
        }
        let of = |mapping| pieces.iter().filter(move |piece| piece.0 == mapping);
        assert_eq!((of(0).count(), of(1).count()), (4, 1));
        assert!(
            pieces
                .windows(2)
                .all(|two| two[0].0 != two[1].0 || two[0].2 == two[1].1)
        );
    }
}
