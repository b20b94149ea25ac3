//! Merged pages in a parent of very many children.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sksm_guest::cgroup::Cgroup;
use sksm_guest::memory::{Map, PAGE};
use sksm_guest::pagemap::{Pagemap, map_count};
use sksm_guest::process::{Child, Ended, Gate, exit_now, fork, wait};
use sksm_guest::report::{Test, test};
use sksm_guest::swap::Swap;
use sksm_guest::sysfs::{Counters, KSM, SKSM};

use crate::expect::{copies, merged, one_page};
use crate::ksm::{scans, unthrottled};
use crate::poison;
use crate::reclaim::all_out_here;

pub const TESTS: &[Test] = &[
    test("children/fork-exec-exit", fork_exec_exit),
    test("children/all-found-when-page-moves", || {
        all_found(CHILDREN, moves_for_all)
    }),
    test("children/all-found-by-reclaim", || {
        // Turned off last, with nothing in it.
        let _swap = Swap::on()?;
        let group = Cgroup::new("children")?;
        group.enter()?;
        // As many as reclaim takes: see too_many().
        all_found(200, |map, children| swaps_for_all(map, children, &group))
    }),
    test("children/too-many-for-reclaim", || {
        too_many(Engine::Sksm, CHILDREN)
    }),
    test("children/too-many-for-reclaim-as-for-ksm", || {
        too_many(Engine::Ksm, CHILDREN / 3)
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
    let children = brood(CHILDREN, &gate, |number| {
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
    let mappings = (CHILDREN + 1) * PAGES;
    ensure!(
        change.pages_sharing as usize == mappings - PAGES / 2,
        "{mappings} mappings: {change:?}"
    );
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
    ensure!(change.pages_sharing as usize == PAGES / 2, "{change:?}");
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
    let deadline = Instant::now() + Duration::from_secs(60);
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

enum Engine {
    Sksm,
    Ksm,
}

/// A page with as many references as a thousand mappings may be pinned, for all that mm knows, so reclaim leaves it alone,
/// whoever shares it. When enough of those who map it have gone, the others' mappings are reclaimed.
fn too_many(engine: Engine, count: usize) -> Result<()> {
    const FEW: usize = 100;
    const ATTEMPTS: usize = 3;
    let _swap = Swap::on()?;
    let group = Cgroup::new("many")?;
    group.enter()?;
    let map = match engine {
        Engine::Sksm => parents_pages()?,
        Engine::Ksm => {
            let map = Map::anon(PAGES)?;
            map.no_huge();
            map.fill_all(id);
            map.advise(libc::MADV_MERGEABLE)?;
            unthrottled()?;
            scans(4)?;
            KSM.write("run", 0)?;
            ensure!(copies(&map.pfns()?) == PAGES / 2, "not merged");
            map
        }
    };
    let before = map.pfns()?;
    let (gate, last_gate) = (Gate::closed()?, Gate::closed()?);
    let many = brood(count - FEW, &gate, |_| map.expect_all(id))?;
    let few = brood(FEW, &last_gate, |_| map.expect_all(id))?;
    // In each process two.
    let mappings = 2 * (count + 1) as u64;
    for _ in 0..ATTEMPTS {
        // That reclaim goes on is seen by other pages.
        let others = Map::filled(&[77; 64])?;
        all_out_here(&group, &others)?;
        for pfn in &before {
            let found = map_count(*pfn)?;
            ensure!(found == mappings, "{found} of {mappings} mappings are left");
        }
    }
    ensure!(map.pfns()? == before, "pages were exchanged");
    gate.open()?;
    all_well(many)?;
    swaps_for_all(&map, &few, &group)?;
    last_gate.open()?;
    all_well(few)?;
    map.expect_all(id)
}

/// Shows, and does not judge, what merged pages cost a fork: its time beside that with ordinary pages.
///
/// UML maps neighbouring frames with one call of the host, and merged pages are no neighbours: 12.2 ms against 1.8 ms, but
/// 13.5 ms for ordinary pages in scattered frames. The cost is the scattering's.
fn cost_of_fork() -> Result<()> {
    const MANY: usize = (16 << 20) / PAGE;
    const ROUNDS: usize = 60;
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
            for _ in 0..ROUNDS {
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
    for _ in 0..ROUNDS {
        for (child, times) in kinds.iter().zip(&mut times) {
            child.go()?;
            times.push(Duration::from_nanos(child.receive()?));
        }
    }
    let [merged, ordinary, scattered] = times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2]
    });
    eprintln!(
        "fork, exit and wait with {MANY} pages, median of {ROUNDS}: merged {merged:?}, ordinary {ordinary:?}, ordinary \
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
