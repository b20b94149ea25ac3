//! One process: draws operations, does them to its arena and to the shadow, and compares.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use crate::machine::kcov::Listener;
use crate::machine::sysfs::{KSM, SKSM};
use crate::memory::map::{EXECUTE, READ, WRITE};
use crate::memory::process::{Ended, Pidfd, exit_now, fork, sharing_memory, wait};
use crate::memory::rights::{ALL, become_user_with};
use crate::memory::userfault;
use crate::page::{PAGE, WORDS};
use crate::syscall::check;
use anyhow::{Context, Result, ensure};

use super::arena::{Arena, Inherited, MIDDLE, PAGES};
use super::changer::Changer;
use super::choices::Choices;
use super::faults::{self, Faults};
use super::operation::{self, Mix, Operation, Operation::*};
use super::pins::{self, Ring};
use super::shadow::{CONTENTS, FILE_PAGES};
use super::shared::{AREA_PAGES, Shared};
use super::system::{SOFT_OFFLINE, System};

/// Children of all workers at a time, and the operations that one lives for. A stress run is slower, and wants many forks.
const MOST_CHILDREN: u64 = 12;
const LIFE: Range<usize> = 10..400;
const MOST_STRESSED_CHILDREN: u64 = 6;
const STRESSED_LIFE: Range<usize> = 5..80;
/// Pages put into a pipe at a time, and pipes held.
const SPLICED_PAGES: usize = 4;
const MOST_SPLICES: usize = 4;
/// Page frames that soft offlining takes away for good.
const MOST_OFFLINED: u64 = 256;
/// Allocations of a call that one may be told to fail of.
const MOST_ALLOCATIONS: usize = 64;
/// Users that processes may become.
const USERS: [u32; 2] = [1001, 1002];
/// Pages that a handler of faults has to do with at a time.
const MOST_HANDLED: usize = 32;
/// Advice that changes no content.
const HINTS: [i32; 8] = [
    libc::MADV_NORMAL,
    libc::MADV_RANDOM,
    libc::MADV_SEQUENTIAL,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTDUMP,
    libc::MADV_DODUMP,
    libc::MADV_POPULATE_WRITE,
    libc::MADV_COLLAPSE,
];
const SPACES: [i32; 4] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER | libc::CLONE_NEWNS,
];
/// How deep families get.
const DEEPEST: u32 = 3;
/// Operations between two comparisons of everything.
const COMPARE_EVERY: usize = 60;
/// How many of the last operations a failure tells.
const REMEMBERED: usize = 12;

/// Merges all the time what the process writes; some of the processes have one.
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
    choices: Choices,
    arena: Arena,
    shared: &'a Shared,
    system: &'a System,
    children: Vec<(i32, Pidfd)>,
    splices: VecDeque<pins::Splice>,
    ring: Option<Ring>,
    faults: Option<Faults>,
    /// Keeps pages write-protected.
    tracker: Option<File>,
    /// Of this process, where the kernel tells.
    listener: Option<Listener<'a>>,
    /// There is a thread that merges.
    merging: bool,
    /// It is root in namespaces of its own only.
    restricted: bool,
    /// Changes a byte behind the shadow's back before the first comparison.
    planted: bool,
    depth: u32,
    last: VecDeque<String>,
}

/// A worker's life, until time is over or no decision is left.
pub fn run(choices: Choices, shared: &Shared, system: &System, planted: bool) -> Result<()> {
    Worker {
        choices,
        arena: Arena::new()?,
        shared,
        system,
        children: Vec::new(),
        splices: VecDeque::new(),
        ring: None,
        faults: None,
        tracker: None,
        listener: None,
        merging: false,
        restricted: false,
        planted,
        depth: 0,
        last: VecDeque::new(),
    }
    .live(usize::MAX)
}

impl Worker<'_> {
    /// Goes on for that many operations or until time is over. Whatever is wrong, everybody stops and it is told.
    fn live(&mut self, operations: usize) -> Result<()> {
        self.listener = match &self.system.coverage {
            Some(coverage) => coverage.listen()?,
            None => None,
        };
        let result = self.work(operations);
        self.listener = None;
        if let Err(error) = &result {
            let last: Vec<_> = self.last.iter().map(String::as_str).collect();
            self.shared
                .differ(&format!("{error:#}; last operations: {}", last.join(", ")));
        }
        result
    }

    fn work(&mut self, operations: usize) -> Result<()> {
        let every = match self.system.mix {
            Mix::Ordinary | Mix::Stress => 2,
            // It takes a CPU from what else there is to find.
            Mix::Fuzz => 8,
        };
        let merger = (self.choices.below(every) == 1).then(Merger::start);
        self.merging = merger.is_some();
        let result = self.operate(operations);
        merger.map_or(Ok(()), Merger::stop)?;
        result?;
        self.compare()?;
        while let Some((pid, _)) = self.children.pop() {
            self.reap(pid)?;
        }
        // What children did must not show here.
        self.compare()
    }

    fn operate(&mut self, operations: usize) -> Result<()> {
        for number in 1..=operations {
            if !self.shared.running() || !self.choices.are_left() {
                break;
            }
            match self.step() {
                // Memory that failed may be in the way of anything. What can be read must be right all the same.
                Err(_) if self.shared.poisoned() => break,
                result => result?,
            }
            self.shared.count_operation();
            if number % COMPARE_EVERY == 0 {
                self.compare()?;
            }
        }
        Ok(())
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
        let mix = self.system.mix;
        operation::pick(self.choices.below(operation::total(mix)), mix)
    }

    /// Mostly a few pages, sometimes very many.
    fn draw_range(&mut self) -> Range<usize> {
        let start = self.choices.below(PAGES);
        let most = self.choices.one_of(&[2, 8, 32, PAGES]);
        let len = 1 + self.choices.below(most);
        start..PAGES.min(start + len)
    }

    fn draw_content(&mut self) -> u64 {
        self.choices.below(CONTENTS as usize) as u64
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
        if self.system.telling {
            eprintln!("{}: {operation:?} {pages:?}", std::process::id());
        }
        if self.system.lacks(operation) {
            return Ok(());
        }
        let result = self.perform(operation, pages.clone());
        if let Some(listener) = &self.listener {
            listener.ask();
        }
        let done = match result {
            // What only root of the whole machine may do has come to nothing.
            Err(error) if self.restricted && not_allowed(&error) => false,
            result => result.with_context(|| format!("{operation:?} of pages {pages:?}"))?,
        };
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
                let first = self.choices.below(FILE_PAGES);
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
            MergeAny => merge_any(self.choices.below(2) == 1),
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
            Move | MoveLeaving => {
                let pages = self.arena.alike(pages);
                let to = self.draw_range();
                let hole = self.arena.hole(to);
                let len = hole.len().min(pages.len());
                if len == 0 {
                    return Ok(false);
                }
                let stay = operation == MoveLeaving;
                self.arena
                    .relocate(pages.start..pages.start + len, hole.start, stay)
            }
            Protect => {
                let prot = self.choices.one_of(&[READ, WRITE, WRITE, EXECUTE]);
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
            FailNth => self.fail_nth(&pages),
            CloneVm => self.clone_vm(),
            Hint => {
                let advice = self.choices.one_of(&HINTS);
                // Some are not for some kinds of memory.
                let taken = self.arena.advise(&mapped, advice).is_ok();
                Ok(taken && !mapped.is_empty())
            }
            Inherit => {
                let kinds = [Inherited::Page, Inherited::Zeros, Inherited::Nothing];
                let kind = self.choices.one_of(&kinds);
                let pages = self.arena.anonymous(mapped);
                self.arena.inherit(pages.clone(), kind)?;
                Ok(!pages.is_empty())
            }
            Supply => {
                let id = self.draw_content();
                let pages = front(self.unlocked(self.arena.anonymous(mapped)), MOST_HANDLED);
                match pages.is_empty() {
                    true => Ok(false),
                    false => {
                        let uffd = userfault::open(0, "supply")?;
                        self.arena.supply(&uffd, pages, id)
                    }
                }
            }
            Carry => self.carry(pages),
            Track => self.track(mapped),
            Reclaim => self.reclaim(),
            SwapOff => self.swap_off(),
            Enter => match self.choices.below(self.system.groups.len() + 1) {
                0 => {
                    std::fs::write("/sys/fs/cgroup/cgroup.procs", "0").context("the root group")?;
                    Ok(true)
                }
                group => self.system.groups[group - 1].enter().map(|()| true),
            },
            Mark => {
                let group = self.choices.below(self.system.groups.len());
                let mark = self
                    .choices
                    .one_of(&["inherit", "user", "all", "all", "none"]);
                self.system.groups[group].write("memory.merge_domain", mark)?;
                Ok(true)
            }
            Setting => self.setting(),
            Ksmd => {
                KSM.write("run", self.choices.one_of(&[1, 1, 2, 0]))?;
                std::thread::sleep(std::time::Duration::from_millis(5));
                KSM.write("run", 0).map(|()| true)
            }
            SetUser => {
                let user = self.choices.one_of(&USERS);
                // A thread beside this one would not keep its rights, and the C library wants all threads to fare alike.
                match self.merging {
                    true => Ok(false),
                    false => become_user_with(user, ALL).map(|()| true),
                }
            }
            Unshare => {
                let spaces = self.choices.one_of(&SPACES);
                // SAFETY: takes a number only. A process with several threads may not have another user namespace.
                let unshared = unsafe { libc::unshare(spaces) } == 0;
                self.restricted |= unshared && spaces & libc::CLONE_NEWUSER != 0;
                Ok(unshared)
            }
            ChangeFile => {
                let system = self.system;
                let file = self.choices.below(system.changing.len());
                Changer::new(&system.changing[file])?.change(&mut self.choices)
            }
            Poison => self.poison(mapped),
            Compare => self.compare().map(|()| true),
        }
    }

    /// A merge or its undoing of which one allocation fails, which it must tell by these errors and nothing else.
    fn fail_nth(&mut self, pages: &Range<usize>) -> Result<bool> {
        let number = 1 + self.choices.below(MOST_ALLOCATIONS);
        if self.choices.below(2) == 0 {
            let (addr, len) = Arena::bytes(pages);
            self.shared.count_merge();
            let (found, failed) = faults::nth(number, || errno(sksm::merge_exact(addr, len)))?;
            return match failed && found == Some(libc::EAGAIN) {
                true => Ok(true),
                false => self.expect_merged(pages, found),
            };
        }
        let mapped = self.arena.mapped(pages.clone());
        let part = || self.arena.advise(&mapped, libc::MADV_UNMERGEABLE);
        let (result, failed) = faults::nth(number, part)?;
        match result {
            Err(error) if !failed => Err(error).context("MADV_UNMERGEABLE"),
            _ => Ok(failed),
        }
    }

    fn clone_vm(&mut self) -> Result<bool> {
        let ended = sharing_memory(share_memory, self.choices.below(4))?;
        ensure!(
            ended == Ended::Exit(0) || ended == LACKED_MEMORY,
            "who shared the memory: {ended}"
        );
        Ok(true)
    }

    fn carry(&mut self, pages: Range<usize>) -> Result<bool> {
        let pages = front(
            self.arena.anonymous(self.arena.writable(pages)),
            MOST_HANDLED,
        );
        let to = self.draw_range();
        let hole = self.arena.hole(to);
        let len = hole.len().min(pages.len());
        if len == 0 {
            return Ok(false);
        }
        let uffd = userfault::open(userfault::FEATURES_MOVE, "moving")?;
        (self.arena).carry(&uffd, pages.start..pages.start + len, hole.start)
    }

    fn track(&mut self, pages: Range<usize>) -> Result<bool> {
        let pages = self.arena.anonymous(pages);
        if pages.is_empty() {
            return Ok(false);
        }
        if self.tracker.is_none() {
            let features = userfault::FEATURES_WP_ASYNC;
            self.tracker = Some(userfault::open(features, "write protection")?);
        }
        let uffd = self.tracker.as_ref().expect("opened just now");
        // Where somebody else's handler of faults is, it stays.
        let bytes = Arena::bytes(&pages);
        Ok(
            userfault::register(uffd, bytes, userfault::REGISTER_WP).is_ok()
                && userfault::protect(uffd, bytes).is_ok(),
        )
    }

    fn reclaim(&mut self) -> Result<bool> {
        let amount = self.choices.one_of(&["64K", "1M", "16M"]);
        let group = match self.choices.below(self.system.groups.len() + 1) {
            0 => return Ok(std::fs::write("/sys/fs/cgroup/memory.reclaim", amount).is_ok()),
            group => &self.system.groups[group - 1],
        };
        // That there was less to reclaim is no error.
        Ok(group
            .write("memory.reclaim", &format!("{amount} swappiness=200"))
            .is_ok())
    }

    fn swap_off(&mut self) -> Result<bool> {
        let Some(file) = &self.system.swap_file else {
            return Ok(false);
        };
        // Somebody else may have taken it away just now, and gives it back.
        if file.off().is_err() {
            return Ok(false);
        }
        file.on_again().map(|()| true)
    }

    fn setting(&mut self) -> Result<bool> {
        match self.choices.below(5) {
            0 => {
                let domains = ["user", "cgroup", "global", "global", "none"];
                SKSM.write("domain", self.choices.one_of(&domains))?;
            }
            1 => SKSM.write("max_page_sharing", self.choices.one_of(&[2, 3, 16, 256]))?,
            2 if self.system.nodes.len() > 1 => {
                SKSM.write("merge_across_nodes", self.choices.below(2))?;
            }
            3 => KSM.write("use_zero_pages", self.choices.below(2))?,
            _ => SKSM.write("unmerge", 1)?,
        }
        Ok(true)
    }

    fn poison(&mut self, pages: Range<usize>) -> Result<bool> {
        let id = self.draw_content();
        let pages = self.unlocked(front(self.arena.anonymous(pages), 1));
        // Not the page of zeros that the whole machine has.
        if pages.is_empty()
            || self.arena.is_zero(pages.start)
            || !self.shared.may_offline(MOST_OFFLINED)
        {
            return Ok(false);
        }
        // First: others may come upon it at once.
        self.shared.count_poisoned();
        self.arena.poison(pages.start, id)
    }

    fn map_changing(&mut self, pages: &Range<usize>) -> Result<bool> {
        let system = self.system;
        let changing = &system.changing[self.choices.below(system.changing.len())];
        let first = self.choices.below(FILE_PAGES);
        let id = self.draw_content();
        let pages = front(pages.clone(), FILE_PAGES - first);
        let first = changing.first + first;
        (self.arena).map_changing(pages, changing.file(), first, id)?;
        Ok(true)
    }

    fn draw_patch(&mut self) -> (usize, u64) {
        // At both ends, which the engine's sample has, and between, where only a comparison of all bytes finds a difference.
        let word = self.choices.one_of(&[0, 160, 301, WORDS - 1]);
        (word, self.choices.below(pins::PATCH_VALUES as usize) as u64)
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
                _ => Err(error).context("merging a child"),
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
                _ => Err(error).context("unmerging a child"),
            },
        }
    }

    fn direct_read(&mut self, pages: Range<usize>) -> Result<bool> {
        let pages = front(pages, AREA_PAGES);
        let from = self.choices.below(FILE_PAGES - AREA_PAGES + 1);
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
        let from = self.choices.below(FILE_PAGES - AREA_PAGES + 1);
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
        let node = self.choices.one_of(&self.system.nodes);
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
        let choices = self.choices.split();
        let (most, operations) = match self.system.mix {
            Mix::Ordinary => (MOST_CHILDREN, self.choices.within(LIFE)),
            Mix::Stress => (MOST_STRESSED_CHILDREN, self.choices.within(STRESSED_LIFE)),
            // As long as its part of the input lasts.
            Mix::Fuzz => (MOST_STRESSED_CHILDREN, usize::MAX),
        };
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
            self.choices = choices;
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
        self.tracker = None;
        // It is the parent's, which goes on.
        std::mem::forget(self.listener.take());
        self.planted = false;
        self.arena.forked();
    }

    fn reap(&self, pid: i32) -> Result<()> {
        let ended = wait(pid)?;
        self.shared.child_ended();
        let failed_memory = ended == Ended::Signal(libc::SIGBUS) && self.shared.poisoned();
        ensure!(
            ended == Ended::Exit(0) || failed_memory || ended == LACKED_MEMORY,
            "child {pid}: {ended}"
        );
        Ok(())
    }
}

/// At most so many pages of the range.
fn front(pages: Range<usize>, most: usize) -> Range<usize> {
    pages.start..pages.end.min(pages.start + most)
}

/// Whether it is something that only root of the whole machine may do.
fn not_allowed(error: &anyhow::Error) -> bool {
    let number = error.chain().find_map(|cause| {
        let system = cause.downcast_ref::<std::io::Error>();
        let library = cause.downcast_ref::<sksm::Error>();
        (system.and_then(std::io::Error::raw_os_error))
            .or(library.and_then(sksm::Error::raw_os_error))
    });
    matches!(number, Some(libc::EPERM | libc::EACCES | libc::ENOMEM))
}

/// What another process that shares the memory does, by system calls alone.
fn share_memory(what: usize) {
    let whole = (Arena::addr(0) as *mut libc::c_void, PAGES * PAGE);
    // SAFETY: advice that leaves contents alone.
    let advise = |advice| unsafe { libc::madvise(whole.0, whole.1, advice) };
    match what {
        0 => _ = sksm::merge_exact(whole.0 as usize, whole.1),
        1 => _ = advise(libc::MADV_UNMERGEABLE),
        2 => _ = advise(libc::MADV_PAGEOUT),
        _ => become_another(),
    }
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
    let error = std::io::Error::last_os_error().raw_os_error();
    exit_now(NOT_ANOTHER + error.unwrap_or(0))
}

/// A process that could not become another one ends with this and the number of the error.
const NOT_ANOTHER: i32 = 100;
/// The arguments of a program need memory, too, of which there may be none.
const LACKED_MEMORY: Ended = Ended::Exit(NOT_ANOTHER + libc::ENOMEM);
