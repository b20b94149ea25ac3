//! Merged pages in a parent of very many children.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::swap::Swap;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{Pagemap, map_count};
use sksm_guest::memory::process::{Child, Ended, Gate, exit_now, fork, wait};
use sksm_guest::page::PAGE;

use crate::expect::{copies, merged, one_page};
use crate::poison;

pub const TESTS: &[Test] = &[
    test("children/fork-exec-exit", fork_exec_exit),
    test("children/all-found-when-page-moves", || {
        all_found(quarter_where_slow(CHILDREN)?, moves_for_all)
    }),
    test("children/all-found-by-reclaim", || {
        // Turned off last, with nothing in it.
        let _swap = Swap::on()?;
        let group = Cgroup::new("children")?;
        group.enter()?;
        // Reclaim takes pages with 1024 references for pinned, whoever shares them.
        all_found(200, |map, children| swaps_for_all(map, children, &group))
    }),
    test("children/cost-of-fork", cost_of_fork),
    test("children/limit-changes-while-mapped", limit_changes),
];

const CHILDREN: usize = 2000;
const PAGES: usize = 8;

fn id(page: usize) -> u64 {
    5 + page as u64 / 2
}

fn parents_pages() -> Result<Map> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(id);
    map.merge()?;
    ensure!(copies(&map.pfns()?) == PAGES / 2, "not merged");
    Ok(map)
}

/// Forks that many children, which do something once the gate opens.
fn brood(count: usize, gate: &Gate, body: impl Fn(usize) -> Result<()>) -> Result<Vec<i32>> {
    (0..count)
        .map(|number| {
            let pid = fork()?;
            if pid == 0 {
                let result = gate.wait().and_then(|()| body(number));
                if let Err(error) = &result {
                    eprintln!("child {number}: {error:#}");
                }
                exit_now(i32::from(result.is_err()));
            }
            Ok(pid)
        })
        .collect()
}

fn all_well(children: Vec<i32>) -> Result<()> {
    for pid in children {
        let ended = wait(pid)?;
        ensure!(ended == Ended::Exit(0), "a child: {ended}");
    }
    Ok(())
}

/// All at the same time: they look, write, merge, exec and exit. The bookkeeping does not grow with them.
fn fork_exec_exit() -> Result<()> {
    let start = Counters::now()?;
    let map = parents_pages()?;
    let metadata = start.change()?.bytes_metadata;
    let gate = Gate::closed()?;
    let children = brood(quarter_where_slow(CHILDREN)?, &gate, |number| {
        map.expect_all(id)?;
        let page = number % PAGES;
        match number % 16 {
            0 => return Err(Command::new("/bin/true").exec().into()),
            1..4 => map.fill(page, 1000 + number as u64),
            // Equal to its neighbour, and to what others write.
            4..6 => {
                map.fill(page, 99);
                map.merge()?;
            }
            _ => return Ok(()),
        }
        map.expect_all(|other| match other {
            _ if other != page => id(other),
            _ if number % 16 < 4 => 1000 + number as u64,
            _ => 99,
        })
    })?;
    let change = start.change()?;
    // Two pages of each content have become one; what fork shares is not saved by that.
    ensure!(change.pages_sharing as usize == PAGES / 2, "{change:?}");
    ensure!(
        change.bytes_metadata == metadata,
        "{} bytes before, {} with all children",
        metadata,
        change.bytes_metadata
    );
    gate.open()?;
    all_well(children)?;
    map.expect_all(id)?;
    let change = start.change()?;
    ensure!(
        change.bytes_metadata == metadata,
        "{} bytes before, {} after",
        metadata,
        change.bytes_metadata
    );
    // Which of a child's mappings a merge had made is not known when they go: never more than there are.
    let saved = change.pages_sharing as usize;
    ensure!(saved <= PAGES / 2, "{change:?}");
    Ok(())
}

/// Takes pages away from a parent and all of its children.
fn all_found(count: usize, take_away: impl FnOnce(&Map, &[i32]) -> Result<()>) -> Result<()> {
    let map = parents_pages()?;
    let gate = Gate::closed()?;
    let children = brood(count, &gate, |_| map.expect_all(id))?;
    take_away(&map, &children)?;
    gate.open()?;
    all_well(children)?;
    map.expect_all(id)
}

fn moves_for_all(map: &Map, children: &[i32]) -> Result<()> {
    poison::needs_memory_failure(map)?;
    let before = map.pfn(0)?;
    let start = Instant::now();
    poison::offline(map, 0)?;
    eprintln!("moved in {:?}", start.elapsed());
    let after = map.pfn(0)?;
    ensure!(after != before, "the page did not move");
    ensure!(map_count(before)? == 0, "the old page is still mapped");
    let mappings = map_count(after)? as usize;
    ensure!(
        mappings == 2 * (children.len() + 1),
        "{mappings} mappings after it moved"
    );
    for pid in children {
        one_page(&[Pagemap::of(*pid)?.pfn(map.page(1))?, after])?;
    }
    Ok(())
}

fn swaps_for_all(map: &Map, children: &[i32], group: &Cgroup) -> Result<()> {
    let pages: Vec<u64> = map.pfns()?;
    let deadline = deadline();
    loop {
        group.reclaim(16 << 20)?;
        let mut out = 0;
        for pid in children {
            let entries = Pagemap::of(*pid)?.entries(map.addr(), PAGES)?;
            out += entries.iter().filter(|entry| entry.swapped()).count();
        }
        if out == children.len() * PAGES {
            return Ok(());
        }
        let left = pages
            .iter()
            .map(|pfn| map_count(*pfn))
            .collect::<Result<Vec<_>>>()?;
        ensure!(
            Instant::now() < deadline,
            "{out} entries swapped out, mappings left: {left:?}"
        );
    }
}

/// Shows, and does not judge, what merged pages cost a fork: its time beside that with ordinary pages.
///
/// UML maps neighbouring frames with one call of the host, and merged pages are no neighbours: 12.2 ms against 1.8 ms, but
/// 13.5 ms for ordinary pages in scattered frames. The cost is the scattering's.
fn cost_of_fork() -> Result<()> {
    const MANY: usize = (16 << 20) / PAGE;
    let rounds = quarter_where_slow(60)?;
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Merged,
        Ordinary,
        /// No page's frame is beside that of its neighbour.
        Scattered,
    }
    // One after the other, so that what else happens concerns all.
    let measured = |kind: Kind| {
        Child::spawn(move |parent| {
            let map = Map::anon(MANY)?;
            map.no_huge();
            for number in 0..MANY {
                let page = match kind {
                    // Odd, so that each page has its turn.
                    Kind::Scattered => number * 1549 % MANY,
                    _ => number,
                };
                map.fill(page, 1 + page as u64 / 2);
            }
            if kind == Kind::Merged {
                map.merge()?;
                ensure!(copies(&map.pfns()?) == MANY / 2, "not merged");
            }
            for _ in 0..rounds {
                parent.pause()?;
                let start = Instant::now();
                let pid = fork()?;
                if pid == 0 {
                    exit_now(0);
                }
                wait(pid)?;
                parent.send(start.elapsed().as_nanos() as u64)?;
            }
            Ok(())
        })
    };
    let kinds = [
        measured(Kind::Merged)?,
        measured(Kind::Ordinary)?,
        measured(Kind::Scattered)?,
    ];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (child, times) in kinds.iter().zip(&mut times) {
            child.go()?;
            times.push(Duration::from_nanos(child.receive()?));
        }
    }
    let [merged, ordinary, scattered] = times.map(|mut times| {
        times.sort_unstable();
        times[rounds / 2]
    });
    eprintln!(
        "fork, exit and wait with {MANY} pages, median of {rounds}: merged {merged:?}, ordinary {ordinary:?}, ordinary \
         in scattered frames {scattered:?}"
    );
    kinds.into_iter().try_for_each(Child::join)
}

/// Children count as mappings, and a changed limit is for later merges.
fn limit_changes() -> Result<()> {
    SKSM.write("max_page_sharing", 4)?;
    let map = merged(4, 5)?;
    let first = map.pfn(0)?;
    let gate = Gate::closed()?;
    let children = brood(10, &gate, |_| map.expect_all(|_| 5))?;
    ensure!(map_count(first)? == 44, "{} mappings", map_count(first)?);
    // Full: the next pages begin another copy, and fill it up.
    let second = merged(4, 5)?;
    ensure!(second.pfn(0)? != first, "a full page took more");
    // Raised: one of the two takes what comes.
    SKSM.write("max_page_sharing", 100)?;
    let third = merged(6, 5)?;
    let joined = third.pfn(0)?;
    ensure!(
        joined == first || joined == second.pfn(0)?,
        "a third copy below the limit"
    );
    // Lowered: nobody joins, and nobody is thrown out.
    SKSM.write("max_page_sharing", 2)?;
    let fourth = Map::filled(&[5; 6])?;
    fourth.merge()?;
    let pfns = fourth.pfns()?;
    ensure!(copies(&pfns) == 3, "{} copies", copies(&pfns));
    for pfn in pfns {
        ensure!(map_count(pfn)? == 2, "{} mappings", map_count(pfn)?);
    }
    one_page(&[third.pfns()?, vec![joined]].concat())?;
    one_page(&[map.pfns()?, vec![first]].concat())?;
    gate.open()?;
    all_well(children)?;
    [map, second, third, fourth]
        .iter()
        .try_for_each(|map| map.expect_all(|_| 5))
}
