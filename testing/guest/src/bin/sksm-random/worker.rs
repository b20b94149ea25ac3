//! One process: draws operations, does them to its arena and to the shadow, and compares.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use sksm_guest::memory::map::{EXECUTE, READ, WRITE};
use sksm_guest::memory::process::{Ended, Pidfd, exit_now, fork, wait};
use sksm_guest::page::{PAGE, WORDS};
use sksm_guest::syscall::check;

use crate::arena::{Arena, MIDDLE, PAGES};
use crate::faults::Faults;
use crate::operation::{self, Operation, Operation::*};
use crate::pins::{self, Ring};
use crate::shadow::{CONTENTS, FILE_PAGES};
use crate::shared::{AREA_PAGES, Shared};
use crate::system::{SOFT_OFFLINE, System};

/// Children of all workers at a time, and the operations that one lives for. A stress run is slower, and wants many forks.
const MOST_CHILDREN: u64 = 12;
const LIFE: Range<u64> = 10..400;
const MOST_STRESSED_CHILDREN: u64 = 6;
const STRESSED_LIFE: Range<u64> = 5..80;
/// Pages put into a pipe at a time, and pipes held.
const SPLICED_PAGES: usize = 4;
const MOST_SPLICES: usize = 4;
/// Page frames that soft offlining takes away for good.
const MOST_OFFLINED: u64 = 256;
/// How deep families get.
const DEEPEST: u32 = 3;
/// Operations between two comparisons of everything.
const COMPARE_EVERY: u64 = 60;
/// How many of the last operations a failure tells.
const REMEMBERED: usize = 12;

/// Merges all the time what the process writes; half of the processes have one.
struct Merger(JoinHandle<()>);

static STOP_MERGING: AtomicBool = AtomicBool::new(false);

impl Merger {
    fn start() -> Self {
        STOP_MERGING.store(false, Relaxed);
        Self(std::thread::spawn(|| {
            while !STOP_MERGING.load(Relaxed) {
                // Holes come and go meanwhile; the worker's own calls check what merging returns.
                sksm::merge_exact(Arena::addr(0), PAGES * PAGE).ok();
                std::thread::yield_now();
            }
        }))
    }

    fn stop(self) -> Result<()> {
        STOP_MERGING.store(true, Relaxed);
        self.0.join().ok().context("the merging thread panicked")
    }
}

struct Worker<'a> {
    random: SmallRng,
    arena: Arena,
    shared: &'a Shared,
    system: &'a System,
    children: Vec<(i32, Pidfd)>,
    splices: VecDeque<pins::Splice>,
    ring: Option<Ring>,
    faults: Option<Faults>,
    /// Changes a byte behind the shadow's back before the first comparison.
    planted: bool,
    depth: u32,
    last: VecDeque<String>,
}

/// A worker's life, until time is over.
pub fn run(seed: u64, shared: &Shared, system: &System, planted: bool) -> Result<()> {
    Worker {
        random: SmallRng::seed_from_u64(seed),
        arena: Arena::new()?,
        shared,
        system,
        children: Vec::new(),
        splices: VecDeque::new(),
        ring: None,
        faults: None,
        planted,
        depth: 0,
        last: VecDeque::new(),
    }
    .live(u64::MAX)
}

impl Worker<'_> {
    /// Goes on for that many operations or until time is over. Whatever is wrong, everybody stops and it is told.
    fn live(&mut self, operations: u64) -> Result<()> {
        let result = self.work(operations);
        if let Err(error) = &result {
            let last: Vec<_> = self.last.iter().map(String::as_str).collect();
            self.shared
                .differ(&format!("{error:#}; last operations: {}", last.join(", ")));
        }
        result
    }

    fn work(&mut self, operations: u64) -> Result<()> {
        let merger = self.random.random_bool(0.5).then(Merger::start);
        let result: Result<()> = (1..=operations)
            .take_while(|_| self.shared.running())
            .try_for_each(|number| {
                self.step()?;
                self.shared.count_operation();
                if number % COMPARE_EVERY == 0 {
                    self.compare()?;
                }
                Ok(())
            });
        merger.map_or(Ok(()), Merger::stop)?;
        result?;
        self.compare()?;
        while let Some((pid, _)) = self.children.pop() {
            self.reap(pid)?;
        }
        // What children did must not show here.
        self.compare()
    }

    fn compare(&mut self) -> Result<()> {
        if self.planted {
            self.arena.plant();
        }
        let pages = self.arena.compare()?;
        self.shared.count_compared(pages);
        Ok(())
    }

    fn draw(&mut self) -> Operation {
        let stress = self.system.stress;
        operation::pick(
            self.random.random_range(0..operation::total(stress)),
            stress,
        )
    }

    /// Mostly a few pages, sometimes very many.
    fn draw_range(&mut self) -> Range<usize> {
        let start = self.random.random_range(0..PAGES);
        let most = [2, 8, 32, PAGES][self.random.random_range(0..4)];
        let len = self.random.random_range(1..=most);
        start..PAGES.min(start + len)
    }

    fn draw_content(&mut self) -> u64 {
        self.random.random_range(0..CONTENTS)
    }

    fn remember(&mut self, operation: Operation, pages: &Range<usize>) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(format!("{operation:?} {pages:?}"));
    }

    fn step(&mut self) -> Result<()> {
        let operation = self.draw();
        let pages = self.draw_range();
        self.remember(operation, &pages);
        if self.system.lacks(operation) {
            return Ok(());
        }
        let done = self
            .perform(operation, pages.clone())
            .with_context(|| format!("{operation:?} of pages {pages:?}"))?;
        if done {
            self.shared.count_done(operation);
        }
        Ok(())
    }

    /// Tells whether there was anything to do and it could be done.
    fn perform(&mut self, operation: Operation, pages: Range<usize>) -> Result<bool> {
        let mapped = self.arena.mapped(pages.clone());
        let writable = self.arena.writable(pages.clone());
        match operation {
            MapAnonymous => self.arena.map_anonymous(pages).map(|()| true),
            MapFile => {
                let first = self.random.random_range(0..FILE_PAGES);
                let file = &self.system.file;
                self.arena.map_file(pages, file, first).map(|()| true)
            }
            MapChanging => self.map_changing(&pages),
            Unmap => self.arena.unmap(pages).map(|()| true),
            Fill => {
                let id = self.draw_content();
                self.arena.fill(writable.clone(), id);
                Ok(!writable.is_empty())
            }
            Patch => {
                let id = self.draw_content();
                let (word, value) = self.draw_patch();
                for page in writable.clone() {
                    self.arena.patch(page, word, value, id);
                }
                Ok(!writable.is_empty())
            }
            Poke => {
                let (word, value) = self.draw_patch();
                match mapped.is_empty() {
                    true => Ok(false),
                    false => self.arena.poke(mapped.start, word, value),
                }
            }
            Merge => self.merge(&pages),
            MergeAll => self.merge(&(0..PAGES)),
            MergeFaulty => self.merge_faulty(&pages),
            MergeChild => self.merge_child(),
            MergeAny => merge_any(self.random.random_bool(0.5)),
            Drop => {
                let id = self.draw_content();
                let pages = self.unlocked(self.arena.droppable(mapped));
                self.arena.drop_pages(pages.clone(), id)?;
                Ok(!pages.is_empty())
            }
            Free => {
                let id = self.draw_content();
                let pages = self.unlocked(self.arena.anonymous(writable));
                self.arena.free_and_fill(pages.clone(), id)?;
                Ok(!pages.is_empty())
            }
            PageOut => self.advise(self.unlocked(mapped), libc::MADV_PAGEOUT),
            Cold => self.advise(self.unlocked(mapped), libc::MADV_COLD),
            WillNeed => self.advise(mapped, libc::MADV_WILLNEED),
            Populate => self.advise(mapped, libc::MADV_POPULATE_READ),
            Move => {
                let pages = self.arena.alike(pages);
                let to = self.draw_range();
                let hole = self.arena.hole(to);
                let len = hole.len().min(pages.len());
                if len == 0 {
                    return Ok(false);
                }
                self.arena
                    .relocate(pages.start..pages.start + len, hole.start)
            }
            Protect => {
                let prot = [READ, WRITE, WRITE, EXECUTE][self.random.random_range(0..4)];
                self.arena.protect(mapped.clone(), prot)?;
                Ok(!mapped.is_empty())
            }
            Mergeable => self.advise(mapped, libc::MADV_MERGEABLE),
            Unmergeable => self.advise(mapped, libc::MADV_UNMERGEABLE),
            Huge => self.advise(mapped, libc::MADV_HUGEPAGE),
            Collapse => self.collapse(),
            Lock => self.lock(&mapped, true),
            Unlock => self.lock(&mapped, false),
            Fork => self.fork(false),
            Exec => self.fork(true),
            DirectRead => self.direct_read(writable),
            DirectWrite => self.direct_write(mapped),
            Splice => self.splice(mapped),
            Unsplice => self.unsplice(),
            RingRegister => self.ring_register(writable),
            RingRead => self.ring_read(),
            MovePages => self.move_pages(mapped),
            SoftOffline => self.soft_offline(mapped),
            UnmergeChild => self.unmerge_child(),
            ClearSoftDirty => {
                std::fs::write("/proc/self/clear_refs", "4").context("clear_refs")?;
                Ok(true)
            }
        }
    }

    fn map_changing(&mut self, pages: &Range<usize>) -> Result<bool> {
        let system = self.system;
        let changing = &system.changing[self.random.random_range(0..system.changing.len())];
        let first = self.random.random_range(0..FILE_PAGES);
        let id = self.draw_content();
        let pages = front(pages.clone(), FILE_PAGES - first);
        let first = changing.first + first;
        (self.arena).map_changing(pages, changing.file(), first, id)?;
        Ok(true)
    }

    fn draw_patch(&mut self) -> (usize, u64) {
        let word = [0, 1, WORDS - 1][self.random.random_range(0..3)];
        (word, self.random.random_range(0..pins::PATCH_VALUES))
    }

    /// Locked pages refuse to be dropped.
    fn unlocked(&self, pages: Range<usize>) -> Range<usize> {
        // Unlocking the whole range first is simpler than a shadow of locks, and as random.
        self.arena.lock(&pages, false).ok();
        pages
    }

    fn advise(&self, pages: Range<usize>, advice: i32) -> Result<bool> {
        self.arena.advise(&pages, advice)?;
        Ok(!pages.is_empty())
    }

    fn lock(&self, pages: &Range<usize>, on: bool) -> Result<bool> {
        self.arena.lock(pages, on)?;
        Ok(!pages.is_empty())
    }

    /// Makes a huge page of small ones.
    fn collapse(&mut self) -> Result<bool> {
        let id = self.draw_content();
        if !self.arena.is_one_mapping(&MIDDLE) {
            self.arena.map_anonymous(MIDDLE)?;
            for page in MIDDLE.step_by(5) {
                self.arena.fill(page..page + 1, id);
            }
        }
        // The kernel may fail to for many reasons: pages that are pinned, locked, or a file's.
        Ok(self.arena.advise(&MIDDLE, libc::MADV_COLLAPSE).is_ok())
    }

    fn merge(&mut self, pages: &Range<usize>) -> Result<bool> {
        let (addr, len) = Arena::bytes(pages);
        self.shared.count_merge();
        let found = errno(sksm::merge_exact(addr, len));
        self.expect_merged(pages, found)
    }

    fn expect_merged(&self, pages: &Range<usize>, found: Option<i32>) -> Result<bool> {
        let wanted = self.arena.has_hole(pages).then_some(libc::ENOMEM);
        ensure!(
            found == wanted,
            "merge returned error {found:?} instead of {wanted:?}"
        );
        Ok(true)
    }

    /// A merge whose allocations may fail, which it must tell by EAGAIN and nothing else.
    fn merge_faulty(&mut self, pages: &Range<usize>) -> Result<bool> {
        let (addr, len) = Arena::bytes(pages);
        self.shared.count_merge();
        if self.faults.is_none() {
            self.faults = Some(Faults::of_this_thread()?);
        }
        let faults = self.faults.as_ref().expect("opened just now");
        let found = faults.during(|| errno(sksm::merge_exact(addr, len)))?;
        if found == Some(libc::EAGAIN) {
            self.shared.count_refused();
            return Ok(true);
        }
        self.expect_merged(pages, found)
    }

    /// Merges a child's arena while the child works on it.
    fn merge_child(&mut self) -> Result<bool> {
        let Some((_, child)) = self.children.last() else {
            return Ok(false);
        };
        self.shared.count_merge();
        let whole = (Arena::addr(0), PAGES * PAGE);
        match sksm::merge_remote(child.as_fd(), &[whole]) {
            Ok(_) => Ok(true),
            // Its holes, or it has exited.
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOMEM) => Ok(true),
                Some(libc::ESRCH) => Ok(false),
                _ => bail!("merging a child: {error}"),
            },
        }
    }

    /// Gives a child's pages copies of their own while the child works on them.
    fn unmerge_child(&mut self) -> Result<bool> {
        let Some((_, child)) = self.children.last() else {
            return Ok(false);
        };
        let part = libc::iovec {
            iov_base: Arena::addr(0) as *mut _,
            iov_len: PAGES * PAGE,
        };
        let (call, fd) = (libc::SYS_process_madvise, child.as_fd().as_raw_fd());
        // SAFETY: one valid part, of another process, in which no content changes.
        match check(unsafe { libc::syscall(call, fd, &part, 1, libc::MADV_UNMERGEABLE, 0) }) {
            Ok(_) => Ok(true),
            // Its holes, or it has exited.
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOMEM) => Ok(true),
                Some(libc::ESRCH) => Ok(false),
                _ => bail!("unmerging a child: {error}"),
            },
        }
    }

    fn direct_read(&mut self, pages: Range<usize>) -> Result<bool> {
        let pages = front(pages, AREA_PAGES);
        let from = self.random.random_range(0..=FILE_PAGES - AREA_PAGES);
        let Some(disk) = self.system.disk.as_ref().filter(|_| !pages.is_empty()) else {
            return Ok(false);
        };
        self.arena.read_from(disk, pages, from)?;
        // A registered buffer shares the pages.
        Ok(true)
    }

    fn direct_write(&mut self, pages: Range<usize>) -> Result<bool> {
        let pages = front(pages, AREA_PAGES);
        let Some(disk) = self.system.disk.as_ref().filter(|_| !pages.is_empty()) else {
            return Ok(false);
        };
        let Some(area) = self.shared.take_area() else {
            return Ok(false);
        };
        let result = (self.arena).write_to(disk, pages, FILE_PAGES + area * AREA_PAGES);
        self.shared.give_area(area);
        result.map(|()| true)
    }

    fn splice(&mut self, pages: Range<usize>) -> Result<bool> {
        let pages = front(pages, SPLICED_PAGES);
        if self.splices.len() == MOST_SPLICES {
            self.unsplice()?;
        }
        if pages.is_empty() {
            return Ok(false);
        }
        let splice = pins::Splice::of(&mut self.arena, pages)?;
        self.splices.push_back(splice);
        Ok(true)
    }

    fn unsplice(&mut self) -> Result<bool> {
        let Some(oldest) = self.splices.pop_front() else {
            return Ok(false);
        };
        self.shared.count_spliced_merged(oldest.merged() as u64);
        oldest.check().map(|()| true)
    }

    fn ring_register(&mut self, pages: Range<usize>) -> Result<bool> {
        let pages = front(pages, AREA_PAGES);
        // One buffer at a time, or an old one's pages would change where nobody looks.
        self.ring = None;
        if pages.is_empty() {
            self.arena.register(pages);
            return Ok(false);
        }
        self.ring = Ring::of(&mut self.arena, pages)?;
        Ok(self.ring.is_some())
    }

    fn ring_read(&mut self) -> Result<bool> {
        let from = self.random.random_range(0..=FILE_PAGES - AREA_PAGES);
        let Some(mut ring) = self.ring.take() else {
            return Ok(false);
        };
        let Some(disk) = &self.system.disk else {
            return Ok(false);
        };
        ring.read(disk, from, || self.merge(&(0..PAGES)).map(drop))?;
        self.arena.registered_read(from);
        // Pages that are not mapped here any more may be in a pipe.
        self.splices
            .iter()
            .for_each(pins::Splice::written_elsewhere);
        self.ring = Some(ring);
        Ok(true)
    }

    /// Moves pages to a node, for all who map them.
    fn move_pages(&mut self, pages: Range<usize>) -> Result<bool> {
        const MOVE_ALL: i32 = 4;
        let node = self.random.random_range(0..self.system.nodes.len());
        let node = self.system.nodes[node];
        let addrs: Vec<usize> = pages.clone().map(Arena::addr).collect();
        let nodes = vec![node; addrs.len()];
        let mut found = vec![-1; addrs.len()];
        // SAFETY: three arrays of that many, and moving changes no content.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                addrs.len(),
                addrs.as_ptr(),
                nodes.as_ptr(),
                found.as_mut_ptr(),
                MOVE_ALL,
            )
        };
        // Busy pages, or none present, are no error of the memory that is compared.
        Ok(result >= 0 && found.contains(&node))
    }

    fn soft_offline(&mut self, pages: Range<usize>) -> Result<bool> {
        let page = front(self.arena.anonymous(pages), 1);
        if page.is_empty() || !self.shared.may_offline(MOST_OFFLINED) {
            return Ok(false);
        }
        // A page in use may fail to move.
        Ok(self.arena.advise(&page, SOFT_OFFLINE).is_ok())
    }

    /// The child inherits memory and shadow and goes its own way for a while, or merges and becomes another program.
    fn fork(&mut self, exec: bool) -> Result<bool> {
        // Drawn in any case: whether there may be a child depends on the others, the sequence must not.
        let seed = self.random.next_u64();
        let (most, life) = match self.system.stress {
            true => (MOST_STRESSED_CHILDREN, STRESSED_LIFE),
            false => (MOST_CHILDREN, LIFE),
        };
        let operations = self.random.random_range(life);
        while let Some(done) = self
            .children
            .iter()
            .position(|(_, child)| child.ends_within(std::time::Duration::ZERO).unwrap_or(true))
        {
            let (pid, _) = self.children.swap_remove(done);
            self.reap(pid)?;
        }
        if self.depth == DEEPEST || !self.shared.may_fork(most) {
            return Ok(false);
        }
        let pid = fork()?;
        if pid == 0 {
            self.let_go();
            if exec {
                sksm::merge_exact(Arena::addr(0), PAGES * PAGE).ok();
                become_another();
            }
            self.random = SmallRng::seed_from_u64(seed);
            self.children.clear();
            self.depth += 1;
            self.last.clear();
            exit_now(i32::from(self.live(operations).is_err()));
        }
        self.children.push((pid, Pidfd::open(pid)?));
        Ok(true)
    }

    /// In a forked child: what holds pages of the parent is the parent's.
    fn let_go(&mut self) {
        self.splices.clear();
        if let Some(ring) = self.ring.take() {
            ring.abandon();
        }
        self.faults = None;
        self.planted = false;
        self.arena.forget_holders();
    }

    fn reap(&self, pid: i32) -> Result<()> {
        let ended = wait(pid)?;
        self.shared.child_ended();
        ensure!(ended == Ended::Exit(0), "child {pid}: {ended}");
        Ok(())
    }
}

/// At most so many pages of the range.
fn front(pages: Range<usize>, most: usize) -> Range<usize> {
    pages.start..pages.end.min(pages.start + most)
}

fn errno(result: Result<(), sksm::Error>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap_or(-1))
}

/// Lets KSM have all memory of the process, or none of it.
fn merge_any(on: bool) -> Result<bool> {
    const PR_SET_MEMORY_MERGE: i32 = 67;
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(PR_SET_MEMORY_MERGE, u64::from(on), 0, 0, 0) })
        .context("PR_SET_MEMORY_MERGE")?;
    Ok(true)
}

fn become_another() -> ! {
    let program = c"/bin/true";
    let arguments = [program.as_ptr(), std::ptr::null()];
    // SAFETY: a valid path, and arguments that end with NULL.
    unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
    exit_now(1)
}
