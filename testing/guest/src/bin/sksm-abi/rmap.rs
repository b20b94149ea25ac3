//! The reverse map: whoever maps a merged page is found, however the mapping came to be. The proof is to take the page away.

use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::swap::Swap;
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::file::memfd;
use sksm_guest::memory::map::{Map, READ, WRITE};
use sksm_guest::memory::pagemap::{Pagemap, map_count};
use sksm_guest::memory::process::{Child, Ended, Gate, Link, adopt_orphans, wait};
use sksm_guest::page::PAGE;

use crate::expect::{merged, one_page};
use crate::poison;

pub const TESTS: &[Test] = &[
    test("rmap/all-mappings-migrate", all_migrate),
    test("rmap/all-mappings-are-reclaimed", all_reclaimed),
    test("rmap/stale-entries-are-pruned", pruned),
    test(
        "rmap/stale-entries-of-processes-are-pruned",
        pruned_of_processes,
    ),
];

const ID: u64 = 5;

/// A page of a process.
struct Place {
    pid: i32,
    addr: usize,
}

/// Mappings of one merged page by all means, in this process and others.
struct Sharers {
    places: Vec<Place>,
    /// They check their places when told to go on.
    children: Vec<Child>,
    /// Processes whose parent has gone. They check theirs when the gate opens.
    orphans: Vec<i32>,
    gate: Gate,
    /// What this process has.
    own: Vec<Map>,
}

fn places(pid: i32, map: &Map) -> impl Iterator<Item = Place> {
    (0..map.pages()).map(move |page| Place {
        pid,
        addr: map.page(page),
    })
}

fn all_right(maps: &[Map]) -> Result<()> {
    maps.iter().try_for_each(|map| map.expect_all(|_| ID))
}

/// Moves a part of a mapping elsewhere; leaves a hole.
fn part_moved(map: &Map, pages: std::ops::Range<usize>) -> Result<Map> {
    ManuallyDrop::into_inner(map.part(pages)).moved()
}

impl Sharers {
    fn new() -> Result<Self> {
        adopt_orphans()?;
        let mut this = Self {
            places: Vec::new(),
            children: Vec::new(),
            orphans: Vec::new(),
            gate: Gate::closed()?,
            own: Vec::new(),
        };
        // Unrelated: each fills and merges its own pages.
        let unrelated = Map::anon(2)?;
        unrelated.no_huge();
        for _ in 0..3 {
            let child = Child::spawn(|parent| {
                unrelated.fill_all(|_| ID);
                unrelated.merge()?;
                parent.meet()?;
                unrelated.expect_all(|_| ID)
            })?;
            child.pause()?;
            this.add(child.pid(), &unrelated);
            this.children.push(child);
        }
        this.children_before_the_merge()?;
        // By mremap: before the merge, after it, and both.
        let before = Map::filled(&[ID; 2])?.moved()?;
        before.merge()?;
        this.keep(before);
        this.keep(merged(2, ID)?.moved()?);
        let twice = Map::filled(&[ID; 2])?.moved()?;
        twice.merge()?;
        this.keep(twice.moved()?.moved()?);
        // The middle of a mapping goes elsewhere, before and after the merge.
        let cut = Map::filled(&[ID; 8])?;
        this.keep(part_moved(&cut, 2..4)?);
        merge(&cut, &[0, 1, 4, 5, 6, 7])?;
        this.keep(part_moved(&cut, 6..8)?);
        this.keep(ManuallyDrop::into_inner(cut.part(0..2)));
        this.keep(ManuallyDrop::into_inner(cut.part(4..6)));
        std::mem::forget(cut);
        this.own.iter().try_for_each(Map::merge)?;
        // Private pages of a file, not from its beginning on.
        let file = memfd(5)?;
        let of_file = Map::at(0, 2, WRITE, libc::MAP_PRIVATE, Some(&file), 3)?;
        of_file.fill_all(|_| ID);
        of_file.merge()?;
        this.keep(of_file);
        // VMAs that are split, before and after the merge, and one that is whole again.
        let split = Map::filled(&[ID; 6])?;
        split.protect_pages(2..4, READ)?;
        split.merge()?;
        split.protect_pages(5..6, READ)?;
        this.keep(split);
        let joined = Map::filled(&[ID; 6])?;
        joined.protect_pages(1..2, READ)?;
        joined.merge()?;
        joined.protect_pages(4..5, READ)?;
        joined.protect(WRITE)?;
        this.keep(joined);
        // Merged by somebody else, with nothing mapped in front of it any more.
        let rest = merged(4, ID)?;
        let tail = part_moved(&rest, 3..4)?;
        rest.unmap_pages(0..2)?;
        this.keep(ManuallyDrop::into_inner(rest.part(2..3)));
        std::mem::forget(rest);
        this.keep(tail);
        this.family()?;
        this.check_shared()?;
        Ok(this)
    }

    fn add(&mut self, pid: i32, map: &Map) {
        self.places.extend(places(pid, map));
    }

    fn keep(&mut self, map: Map) {
        self.add(std::process::id() as i32, &map);
        self.own.push(map);
    }

    /// Parent and child share a page by fork, and then it is merged, in one of them or in both.
    fn children_before_the_merge(&mut self) -> Result<()> {
        for remote in [false, true] {
            let map = Map::filled(&[ID; 2])?;
            let child = Child::spawn(|parent| {
                parent.meet()?;
                map.expect_all(|_| ID)
            })?;
            child.pause()?;
            let inherited: Vec<Place> = (self.own.iter())
                .flat_map(|map| places(child.pid(), map))
                .collect();
            self.places.extend(inherited);
            map.merge()?;
            if remote {
                sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
                self.add(child.pid(), &map);
            } else {
                // The child's pages are the ones from before, and not merged.
                sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.page(0), PAGE)])?;
                self.places.push(Place {
                    pid: child.pid(),
                    addr: map.page(0),
                });
            }
            self.keep(map);
            self.children.push(child);
        }
        Ok(())
    }

    /// Children and grandchildren of all that is there, some without their parent, some of whom have moved their pages.
    fn family(&mut self) -> Result<()> {
        let before = self
            .places
            .iter()
            .filter(|place| place.pid == std::process::id() as i32);
        let addrs: Vec<usize> = before.map(|place| place.addr).collect();
        let own = std::mem::take(&mut self.own);
        let last = |parent: &Link| {
            parent.meet()?;
            all_right(&own)
        };
        let child = Child::spawn(last)?;
        child.pause()?;
        let son = Child::spawn(|parent| {
            let grandchild = Child::spawn(|_| {
                self.gate.wait()?;
                all_right(&own)
            })?;
            parent.send(grandchild.pid() as u64)?;
            std::mem::forget(grandchild);
            Ok(())
        })?;
        let orphan = son.receive()? as i32;
        // The grandchild holds its end of the talk, so there is no end of that.
        let ended = son.ended()?;
        ensure!(ended == Ended::Exit(0), "the orphan's parent: {ended}");
        let grandfather = Child::spawn(|parent| {
            let moved = merged(2, ID)?.moved()?;
            let grandchild = Child::spawn(|parent| {
                parent.meet()?;
                all_right(&own)?;
                moved.expect_all(|_| ID)
            })?;
            grandchild.pause()?;
            parent.send(grandchild.pid() as u64)?;
            parent.send(moved.addr() as u64)?;
            parent.pause()?;
            all_right(&own)?;
            grandchild.go()?;
            grandchild.join()
        })?;
        let grandchild = grandfather.receive()? as i32;
        let moved = grandfather.receive()? as usize;
        for pid in [child.pid(), orphan, grandfather.pid(), grandchild] {
            self.places
                .extend(addrs.iter().map(|addr| Place { pid, addr: *addr }));
        }
        for pid in [grandfather.pid(), grandchild] {
            self.places.extend([0, 1].map(|page| Place {
                pid,
                addr: moved + page * PAGE,
            }));
        }
        self.orphans.push(orphan);
        self.children.extend([child, grandfather]);
        self.own = own;
        Ok(())
    }

    /// The page behind each place; none where nothing is present.
    fn pfns(&self) -> Result<Vec<Option<u64>>> {
        self.places
            .iter()
            .map(|place| Ok(Pagemap::of(place.pid)?.entry(place.addr)?.pfn()))
            .collect()
    }

    /// The page that they all share, and nobody besides.
    fn check_shared(&self) -> Result<u64> {
        let pfns = self.pfns()?;
        let Some(pfn) = pfns[0] else {
            bail!("no page is present")
        };
        for (place, found) in self.places.iter().zip(&pfns) {
            let name = if place.pid == std::process::id() as i32 {
                "this process"
            } else {
                "another process"
            };
            ensure!(
                *found == Some(pfn),
                "{:#x} of {name} maps {found:x?}, not {pfn:#x}",
                place.addr
            );
        }
        let mappings = map_count(pfn)?;
        ensure!(
            mappings == pfns.len() as u64,
            "{mappings} mappings, {} places",
            pfns.len()
        );
        Ok(pfn)
    }

    /// All of them read their pages.
    fn end(self) -> Result<()> {
        all_right(&self.own)?;
        self.gate.open()?;
        for pid in self.orphans {
            let ended = wait(pid)?;
            ensure!(ended == Ended::Exit(0), "an orphan: {ended}");
        }
        for child in self.children {
            child.go()?;
            child.join()?;
        }
        Ok(())
    }
}

fn merge(map: &Map, pages: &[usize]) -> Result<()> {
    pages
        .iter()
        .try_for_each(|page| map.merge_pages(*page..page + 1))
}

fn all_migrate() -> Result<()> {
    poison::needs_memory_failure(&Map::anon(1)?)?;
    let sharers = Sharers::new()?;
    let before = sharers.check_shared()?;
    poison::offline(&sharers.own[0], 0)?;
    let after = sharers.check_shared()?;
    ensure!(after != before, "the page did not move");
    ensure!(map_count(before)? == 0, "the old page is still mapped");
    eprintln!("{} mappings moved", sharers.places.len());
    sharers.end()
}

fn all_reclaimed() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("rmap")?;
    group.enter()?;
    let sharers = Sharers::new()?;
    let places = sharers.places.len();
    let deadline = deadline();
    loop {
        group.reclaim(16 << 20)?;
        let present = sharers.pfns()?.iter().flatten().count();
        if present == 0 {
            break;
        }
        // All or none: it is one page.
        ensure!(
            Instant::now() < deadline,
            "{present} of {places} mappings cannot be reclaimed"
        );
    }
    eprintln!("{places} mappings were reclaimed");
    sharers.end()
}

/// What the bookkeeping of one page may take, however often it was shared: its node, and places for a few sharers.
const ENOUGH: i64 = 96 + 64 * 16;

fn pruned() -> Result<()> {
    let cycles = quarter_where_slow(5000)?;
    let start = Counters::now()?;
    let kept = merged(2, ID)?;
    let mut most = 0;
    for cycle in 0..cycles {
        let map = Map::filled(&[ID])?;
        map.merge()?;
        if cycle % 50 == 0 {
            one_page(&[map.pfns()?, kept.pfns()?].concat())?;
            most = most.max(start.change()?.bytes_metadata);
        }
        match cycle % 3 {
            0 => drop(map),
            1 => map.fill(0, ID + 1),
            _ => map.moved()?.advise(libc::MADV_DONTNEED)?,
        }
    }
    eprintln!("at most {most} bytes");
    ensure!(
        most <= ENOUGH,
        "{most} bytes for one page after {cycles} sharers"
    );
    kept.expect_all(|_| ID)
}

fn pruned_of_processes() -> Result<()> {
    let cycles = quarter_where_slow(300)?;
    let start = Counters::now()?;
    let kept = merged(2, ID)?;
    let mut most = 0;
    for _ in 0..cycles {
        let child = Child::spawn(|_| {
            let map = merged(3, ID)?;
            Child::spawn(|_| map.expect_all(|_| ID))?.join()
        })?;
        child.join()?;
        most = most.max(start.change()?.bytes_metadata);
    }
    eprintln!("at most {most} bytes");
    ensure!(
        most <= ENOUGH,
        "{most} bytes for one page after {cycles} processes"
    );
    kept.expect_all(|_| ID)
}
