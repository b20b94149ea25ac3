//! Migration of merged pages by compaction.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;

use crate::expect::{copies, merging};
use crate::writers::{beside, count, for_a_while_until};

pub const TESTS: &[Test] = &[
    test("moving/compaction", compaction),
    test("moving/compaction-with-writes", compaction_with_writes),
];

pub fn compact() -> Result<()> {
    fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")
}

/// Merged pages in low frames, with holes between them and room above, so that compaction has to move them. It packs what can be
/// moved together at the end of a zone.
struct Scattered {
    map: Map,
    /// The pages that are there; the others are holes.
    kept: Vec<usize>,
    merged: bool,
}

/// Pages of the same content.
const ALIKE: usize = 4;
/// Frames that are taken for each page that is kept.
const FRAMES: usize = 4;

impl Scattered {
    fn new(pages: usize, merged: bool) -> Result<Self> {
        if !fs::exists("/proc/sys/vm/compact_memory")? {
            return skip("no compaction in this kernel (CONFIG_COMPACTION)");
        }
        let map = Map::anon(FRAMES * pages)?;
        map.no_huge();
        let mut this = Self {
            map,
            kept: Vec::new(),
            merged,
        };
        this.scatter()?;
        Ok(this)
    }

    /// Gives up all pages and takes new ones.
    fn scatter(&mut self) -> Result<()> {
        let all = self.map.pages();
        self.map.advise(libc::MADV_DONTNEED)?;
        (0..all).for_each(|page| self.map.put(page, 0, 1));
        let pfns = self.map.pfns()?;
        let mut pages: Vec<usize> = (0..all).collect();
        pages.sort_unstable_by_key(|page| pfns[*page]);
        // Every other one of the lower half.
        let keep = |rank: usize| rank < all / 2 && rank % 2 == 0;
        self.kept.clear();
        for (rank, page) in pages.into_iter().enumerate() {
            if keep(rank) {
                self.kept.push(page);
            } else {
                self.map.advise_pages(page..page + 1, libc::MADV_DONTNEED)?;
            }
        }
        self.fill();
        if !self.merged {
            return Ok(());
        }
        self.map.merge()?;
        let found = copies(&self.pfns()?);
        ensure!(found == self.kept.len() / ALIKE, "{found} copies");
        Ok(())
    }

    /// The content of the nth of the pages.
    fn id(rank: usize) -> u64 {
        1 + (rank / ALIKE) as u64
    }

    fn fill(&self) {
        for (rank, page) in self.kept.iter().enumerate() {
            self.map.fill(*page, Self::id(rank));
        }
    }

    fn expect(&self, id: impl Fn(usize) -> u64) -> Result<()> {
        let mut pages = self.kept.iter().enumerate();
        pages.try_for_each(|(rank, page)| self.map.expect(*page, id(rank)))
    }

    /// The frames of the pages that are there.
    fn pfns(&self) -> Result<Vec<u64>> {
        let entries = Pagemap::own()?.entries(self.map.addr(), self.map.pages())?;
        let pfn = |page: &usize| entries[*page].pfn().context("a page has gone");
        self.kept.iter().map(pfn).collect()
    }

    /// Compacts, and tells how many mappings lead to another frame then.
    fn compacted(&self) -> Result<usize> {
        let before = self.pfns()?;
        compact()?;
        let after = self.pfns()?;
        ensure!(
            copies(&after) == copies(&before),
            "moving parted merged pages"
        );
        let pairs = before.iter().zip(&after);
        Ok(pairs.filter(|(was, is)| was != is).count())
    }
}

/// Whether compaction moves few ordinary pages, or at most twice as many as it `moved`: how many have to move depends on where
/// free frames are.
fn ordinary_ones_hardly_move_more(moved: usize, pages: usize) -> Result<bool> {
    let ordinary = Scattered::new(pages, false)?.compacted()?;
    eprintln!("{ordinary} of {pages} ordinary pages moved");
    Ok(ordinary <= (2 * moved).max(pages / 16))
}

/// So often is compaction asked for until enough has moved, each time of pages that lie anew as it is to find them.
const ROUNDS: usize = 10;

fn compaction() -> Result<()> {
    const PAGES: usize = (16 << 20) / PAGE;
    let mut moved = 0;
    for _ in 0..ROUNDS {
        moved = moved.max(compacted_beside_a_child(PAGES)?);
        eprintln!("{moved} of {PAGES} mappings moved");
        // How many have to move is up to where free frames are: on a machine that was long in use it was a fifth, once a sixteenth.
        if moved > PAGES / 16 {
            return Ok(());
        }
    }
    ensure!(
        ordinary_ones_hardly_move_more(moved, PAGES)?,
        "{moved} of {PAGES} mappings of merged pages moved"
    );
    Ok(())
}

/// Compacts while a child shares the pages, and tells how many of this process's mappings moved.
fn compacted_beside_a_child(all: usize) -> Result<usize> {
    let pages = Scattered::new(all, true)?;
    let id = Scattered::id;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        pages.expect(id)?;
        pages.map.merge()?;
        (pages.kept.iter().step_by(5)).for_each(|page| pages.map.fill(*page, 1));
        parent.meet()?;
        pages.expect(|rank| if rank % 5 == 0 { 1 } else { id(rank) })
    })?;
    child.pause()?;
    let moved = pages.compacted()?;
    child.go()?;
    child.pause()?;
    compact()?;
    pages.expect(id)?;
    // A page that moved is still found by content.
    let twin = Map::anon(all)?;
    twin.no_huge();
    twin.fill_all(id);
    twin.merge()?;
    let frames = [pages.pfns()?, twin.pfns()?].concat();
    ensure!(
        copies(&frames) == all / ALIKE,
        "moved pages are not found: {} copies",
        copies(&frames)
    );
    child.go()?;
    child.join()?;
    Ok(moved)
}

fn compaction_with_writes() -> Result<()> {
    const PAGES: usize = 64;
    const OTHERS: usize = 1024;
    let others = Mutex::new(Scattered::new(OTHERS, true)?);
    let (moved, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let compact = || {
        let mut others = others.lock().expect("no compaction has panicked");
        moved.fetch_add(others.compacted()?, Relaxed);
        others.expect(Scattered::id)?;
        rounds.fetch_add(1, Relaxed);
        // Compaction has left them where it leaves them.
        others.scatter()
    };
    let map = Map::filled(&[0; PAGES])?;
    let write = |round| count(&map, 0..PAGES, round);
    let enough = || moved.load(Relaxed) > OTHERS / 4 || rounds.load(Relaxed) > ROUNDS;
    let compacting = |_: &_| beside(1, compact, |_| for_a_while_until(enough, write));
    merging(|| beside(1, || map.merge(), compacting))?;
    let moved = moved.into_inner();
    eprintln!("{moved} mappings moved");
    ensure!(
        moved > OTHERS / 4 || ordinary_ones_hardly_move_more(moved, OTHERS)?,
        "{moved} mappings moved meanwhile"
    );
    Ok(())
}
