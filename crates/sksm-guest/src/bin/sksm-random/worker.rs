//! One process: draws operations, does them to its arena and to the shadow, and compares.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use sksm_guest::memory::{EXECUTE, PAGE, READ, WORDS, WRITE};
use sksm_guest::process::{Ended, Pidfd, exit_now, fork, wait};

use crate::arena::{Arena, PAGES};
use crate::shadow::{CONTENTS, FILE_PAGES};
use crate::shared::Shared;

/// Children of all workers at a time.
const MOST_CHILDREN: u64 = 12;
/// How deep families get.
const DEEPEST: u32 = 3;
/// Operations between two comparisons of everything.
const COMPARE_EVERY: u64 = 60;
/// How many of the last operations a failure tells.
const REMEMBERED: usize = 12;

#[derive(Clone, Copy, Debug)]
enum Operation {
    MapAnonymous,
    MapFile,
    Unmap,
    Fill,
    Patch,
    Merge,
    MergeAll,
    MergeChild,
    Drop,
    Free,
    PageOut,
    Move,
    Protect,
    Mergeable,
    Unmergeable,
    Huge,
    Collapse,
    Lock,
    Unlock,
    Fork,
}

use Operation::*;

/// How often each comes up.
const WEIGHTS: [(Operation, u32); 20] = [
    (MapAnonymous, 5),
    (MapFile, 4),
    (Unmap, 4),
    (Fill, 24),
    (Patch, 24),
    (Merge, 20),
    (MergeAll, 3),
    (MergeChild, 2),
    (Drop, 4),
    (Free, 2),
    (PageOut, 3),
    (Move, 5),
    (Protect, 5),
    (Mergeable, 2),
    (Unmergeable, 2),
    (Huge, 2),
    (Collapse, 1),
    (Lock, 1),
    (Unlock, 2),
    (Fork, 1),
];

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
    file: &'a File,
    children: Vec<(i32, Pidfd)>,
    depth: u32,
    last: VecDeque<String>,
}

/// A worker's life, until time is over.
pub fn run(seed: u64, shared: &Shared, file: &File) -> Result<()> {
    Worker {
        random: SmallRng::seed_from_u64(seed),
        arena: Arena::new()?,
        shared,
        file,
        children: Vec::new(),
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
        let pages = self.arena.compare()?;
        self.shared.count_compared(pages);
        Ok(())
    }

    fn draw(&mut self) -> Operation {
        let mut left = self
            .random
            .random_range(0..WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (operation, weight) in WEIGHTS {
            if left < weight {
                return operation;
            }
            left -= weight;
        }
        unreachable!("less than the sum of all weights")
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
        self.perform(operation, pages.clone())
            .with_context(|| format!("{operation:?} of pages {pages:?}"))
    }

    fn perform(&mut self, operation: Operation, pages: Range<usize>) -> Result<()> {
        match operation {
            MapAnonymous => self.arena.map_anonymous(pages),
            MapFile => {
                let first = self.random.random_range(0..FILE_PAGES);
                self.arena.map_file(pages, self.file, first)
            }
            Unmap => self.arena.unmap(pages),
            Fill => {
                let id = self.draw_content();
                let pages = self.arena.writable(pages);
                self.arena.fill(pages, id);
                Ok(())
            }
            Patch => {
                let id = self.draw_content();
                let word = [0, 1, WORDS - 1][self.random.random_range(0..3)];
                let value = self.random.random_range(0..3);
                for page in self.arena.writable(pages) {
                    self.arena.patch(page, word, value, id);
                }
                Ok(())
            }
            Merge => self.merge(&pages),
            MergeAll => self.merge(&(0..PAGES)),
            MergeChild => self.merge_child(),
            Drop => {
                let pages = self.unlocked(self.arena.mapped(pages));
                self.arena.drop_pages(pages)
            }
            Free => {
                let id = self.draw_content();
                let writable = self.arena.writable(pages);
                let pages = self.unlocked(self.arena.anonymous(writable));
                self.arena.free_and_fill(pages, id)
            }
            PageOut => {
                let pages = self.unlocked(self.arena.mapped(pages));
                Ok(self.arena.advise(&pages, libc::MADV_PAGEOUT)?)
            }
            Move => {
                let pages = self.arena.alike(pages);
                let to = self.draw_range();
                let hole = self.arena.hole(to);
                let len = hole.len().min(pages.len());
                if len == 0 {
                    return Ok(());
                }
                self.arena
                    .relocate(pages.start..pages.start + len, hole.start)
            }
            Protect => {
                let prot = [READ, WRITE, WRITE, EXECUTE][self.random.random_range(0..4)];
                let pages = self.arena.mapped(pages);
                self.arena.protect(pages, prot)
            }
            Mergeable => self.advise_ksm(pages, libc::MADV_MERGEABLE),
            Unmergeable => self.advise_ksm(pages, libc::MADV_UNMERGEABLE),
            Huge => self.try_advice(pages, libc::MADV_HUGEPAGE),
            Collapse => self.try_advice(pages, libc::MADV_COLLAPSE),
            Lock => Ok(self.arena.lock(&self.arena.mapped(pages), true)?),
            Unlock => Ok(self.arena.lock(&self.arena.mapped(pages), false)?),
            Fork => self.fork(),
        }
    }

    /// Locked pages refuse to be dropped.
    fn unlocked(&self, pages: Range<usize>) -> Range<usize> {
        // Unlocking the whole range first is simpler than a shadow of locks, and as random.
        self.arena.lock(&pages, false).ok();
        pages
    }

    /// Advice about huge pages, which not every kernel knows, nor can follow every time.
    fn try_advice(&self, pages: Range<usize>, advice: i32) -> Result<()> {
        self.arena.advise(&self.arena.mapped(pages), advice).ok();
        Ok(())
    }

    fn advise_ksm(&self, pages: Range<usize>, advice: i32) -> Result<()> {
        Ok(self.arena.advise(&self.arena.mapped(pages), advice)?)
    }

    fn merge(&mut self, pages: &Range<usize>) -> Result<()> {
        let (addr, len) = Arena::bytes(pages);
        self.shared.count_merge();
        let found = sksm::merge_exact(addr, len).map_err(|error| error.raw_os_error());
        let wanted = if self.arena.has_hole(pages) {
            Err(Some(libc::ENOMEM))
        } else {
            Ok(())
        };
        ensure!(
            found == wanted,
            "merge returned {found:?} instead of {wanted:?}"
        );
        Ok(())
    }

    /// Merges a child's arena while the child works on it.
    fn merge_child(&mut self) -> Result<()> {
        let Some((_, child)) = self.children.last() else {
            return Ok(());
        };
        self.shared.count_merge();
        let whole = (Arena::addr(0), PAGES * PAGE);
        match sksm::merge_remote(child.as_fd(), &[whole]) {
            Ok(_) => Ok(()),
            // Its holes, or it has exited.
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOMEM | libc::ESRCH) => Ok(()),
                _ => bail!("merging a child: {error}"),
            },
        }
    }

    /// The child inherits memory and shadow and goes its own way for a while.
    fn fork(&mut self) -> Result<()> {
        // Drawn in any case: whether there may be a child depends on the others, the sequence must not.
        let seed = self.random.next_u64();
        let operations = self.random.random_range(10..400);
        while let Some(done) = self
            .children
            .iter()
            .position(|(_, child)| child.ends_within(std::time::Duration::ZERO).unwrap_or(true))
        {
            let (pid, _) = self.children.swap_remove(done);
            self.reap(pid)?;
        }
        if self.depth == DEEPEST || !self.shared.may_fork(MOST_CHILDREN) {
            return Ok(());
        }
        let pid = fork()?;
        if pid == 0 {
            self.random = SmallRng::seed_from_u64(seed);
            self.children.clear();
            self.depth += 1;
            self.last.clear();
            exit_now(i32::from(self.live(operations).is_err()));
        }
        self.children.push((pid, Pidfd::open(pid)?));
        Ok(())
    }

    fn reap(&self, pid: i32) -> Result<()> {
        let ended = wait(pid)?;
        self.shared.child_ended();
        ensure!(ended == Ended::Exit(0), "child {pid}: {ended}");
        Ok(())
    }
}
