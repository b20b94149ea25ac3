//! Families of processes: pages shared by fork, before and after merging, and equal pages of many processes.

use anyhow::{Result, ensure};
use sksm_guest::harness::patience::PATIENCE;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, Ended, Gate, Link, Pidfd, adopt_orphans, wait};

use crate::expect::{copies, merged, merging, one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test(
        "fork/shared-by-fork-then-merged",
        shared_by_fork_then_merged,
    ),
    test("fork/merged-then-forked", merged_then_forked),
    test(
        "fork/child-merges-parent-writes",
        child_merges_parent_writes,
    ),
    test(
        "fork/parent-merges-child-writes",
        parent_merges_child_writes,
    ),
    test("fork/grandchildren", grandchildren),
    test("fork/parent-exits-first", parent_exits_first),
    test("fork/zero-pages", zero_pages_of_family),
    test("fork/two-processes", two_processes),
    test("fork/three-processes", three_processes),
    test("fork/two-hundred-processes", two_hundred_processes),
    test("fork/concurrent-merges", concurrent_merges),
    test("fork/merge-while-forking", merge_while_forking),
];

fn page_of(child: &Child, map: &Map, page: usize) -> Result<u64> {
    child.pagemap()?.pfn(map.page(page))
}

fn shared_by_fork_then_merged() -> Result<()> {
    let map = Map::filled(&[5; 2])?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.merge()?;
        parent.meet()?;
        map.fill(0, 6);
        map.expect(1, 5)?;
        parent.meet()?;
        map.expect(0, 6)
    })?;
    child.pause()?;
    map.merge()?;
    one_page(&map.pfns()?)?;
    child.go()?;
    child.pause()?;
    let childs = [page_of(&child, &map, 0)?, page_of(&child, &map, 1)?];
    one_page(&[&map.pfns()?[..], &childs].concat())?;
    child.go()?;
    child.pause()?;
    map.expect_all(|_| 5)?;
    map.fill_all(|_| 7);
    child.go()?;
    child.join()?;
    map.expect_all(|_| 7)
}

fn merged_then_forked() -> Result<()> {
    let start = Counters::now()?;
    let map = merged(3, 5)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.fill(1, 6);
        map.expect_all(|page| [5, 6, 5][page])?;
        parent.meet()
    })?;
    child.pause()?;
    one_page(&[map.pfn(0)?, page_of(&child, &map, 2)?])?;
    // What fork shares no merge has saved.
    let saved = || -> Result<()> {
        let sharing = start.change()?.pages_sharing;
        ensure!(sharing == 2, "two pages saved, {sharing} counted");
        Ok(())
    };
    saved()?;
    child.go()?;
    child.pause()?;
    map.expect_all(|_| 5)?;
    saved()?;
    child.go()?;
    child.join()?;
    saved()?;
    one_page(&map.pfns()?)
}

/// Merging in the child publishes pages that the parent maps too.
fn child_merges_parent_writes() -> Result<()> {
    let map = Map::filled(&[5, 5, 6, 0])?;
    let right = |page: usize| [5, 5, 6, 0][page];
    let child = Child::spawn(|parent| {
        map.merge()?;
        one_page(&map.pfns()?[..2])?;
        parent.meet()?;
        map.expect_all(right)?;
        map.merge()?;
        map.fill_all(|_| 9);
        parent.meet()?;
        map.expect_all(|_| 9)
    })?;
    child.pause()?;
    map.expect_all(right)?;
    map.fill_all(|page| 20 + page as u64);
    child.go()?;
    child.pause()?;
    map.expect_all(|page| 20 + page as u64)?;
    map.merge()?;
    child.go()?;
    child.join()
}

fn parent_merges_child_writes() -> Result<()> {
    let map = Map::filled(&[5, 5, 6, 0])?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.expect_all(|page| [5, 5, 6, 0][page])?;
        map.fill_all(|page| 20 + page as u64);
        parent.meet()?;
        map.expect_all(|page| 20 + page as u64)
    })?;
    child.pause()?;
    map.merge()?;
    one_page(&map.pfns()?[..2])?;
    child.go()?;
    child.pause()?;
    map.expect_all(|page| [5, 5, 6, 0][page])?;
    map.fill_all(|_| 9);
    child.go()?;
    child.join()
}

/// Each generation merges, writes one page and forks the next.
fn generation(map: &Map, depth: u64) -> Result<()> {
    let right = |page: usize| if (page as u64) < depth { 50 } else { 5 };
    map.expect_all(right)?;
    if depth == 6 {
        return Ok(());
    }
    map.fill(depth as usize, 50);
    map.merge()?;
    let children = [0, 1].map(|_| Child::spawn(|_| generation(map, depth + 1)));
    for child in children {
        child?.join()?;
    }
    map.expect_all(|page| if page as u64 <= depth { 50 } else { 5 })
}

fn grandchildren() -> Result<()> {
    let map = Map::filled(&[5; 8])?;
    merging(|| generation(&map, 0))
}

/// The process that a merged page comes from goes; its descendants keep the page.
fn parent_exits_first() -> Result<()> {
    adopt_orphans()?;
    let child = Child::spawn(|parent| {
        let map = merged(3, 5)?;
        let myself = Pidfd::open(std::process::id() as i32)?;
        let grandchild = Child::spawn(|_| {
            ensure!(myself.ends_within(PATIENCE)?, "the parent hangs");
            map.expect_all(|_| 5)?;
            map.fill(0, 6);
            map.merge()?;
            let more = merged(2, 5)?;
            one_page(&[map.pfn(1)?, more.pfn(0)?])?;
            map.expect_all(|page| [6, 5, 5][page])?;
            Ok(())
        })?;
        parent.send(grandchild.pid() as u64)?;
        std::mem::forget(grandchild);
        Ok(())
    })?;
    let grandchild = child.receive()? as i32;
    child.join()?;
    let ended = wait(grandchild)?;
    ensure!(ended == Ended::Exit(0), "the grandchild: {ended}");
    Ok(())
}

fn zero_pages_of_family() -> Result<()> {
    let map = Map::filled(&[0; 4])?;
    let start = Counters::now()?;
    map.merge()?;
    zero_pages(&map)?;
    let child = Child::spawn(|_| {
        map.fill(0, 1);
        map.expect_all(|page| u64::from(page == 0))
    })?;
    child.join()?;
    map.expect_all(|_| 0)?;
    ensure!(start.change()?.pages_zero == 4, "{:?}", start.change()?);
    Ok(())
}

/// Processes that each build the same pages by themselves, at addresses of their own.
fn processes(count: usize, pages: usize) -> Result<()> {
    let id = |page: usize| 100 + page as u64;
    let start = Counters::now()?;
    let body = |number: usize| {
        move |parent: &Link| {
            let room = Map::anon(number * 3 + 1)?;
            let map = Map::anon(pages)?;
            map.no_huge();
            map.fill_all(id);
            map.merge()?;
            parent.send(map.addr() as u64)?;
            parent.pause()?;
            let written = number % pages;
            map.put(written, 500, number as u64);
            ensure!(map.get(written, 500) == number as u64, "a write was lost");
            parent.meet()?;
            let others = (0..pages).filter(|page| *page != written);
            others
                .into_iter()
                .try_for_each(|page| map.expect(page, id(page)))?;
            ensure!(map.get(written, 500) == number as u64, "a write was lost");
            drop(room);
            Ok(())
        }
    };
    let mut children = Vec::new();
    for number in 0..count {
        children.push(Child::spawn(body(number))?);
    }
    let mut pfns = Vec::new();
    for child in &children {
        let addr = child.receive()? as usize;
        pfns.push(child.pagemap()?.pfns(addr, pages)?);
    }
    ensure!(
        pfns.iter().all(|other| *other == pfns[0]),
        "{} copies of {pages} pages in {count} processes",
        copies(&pfns.concat())
    );
    let change = start.change()?;
    let wanted = (pages as i64, (pages * (count - 1)) as i64);
    ensure!(
        (change.pages_shared, change.pages_sharing) == wanted,
        "{change:?}"
    );
    children.iter().try_for_each(|child| child.go())?;
    children.iter().try_for_each(|child| child.pause())?;
    // They exit in another order than they came.
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|number| number * 7 % count);
    let mut children: Vec<_> = children.into_iter().map(Some).collect();
    for number in order {
        let child = children[number].take();
        if let Some(child) = child {
            child.go()?;
            child.join()?;
        }
    }
    Ok(())
}

fn two_processes() -> Result<()> {
    processes(2, 4)
}

fn three_processes() -> Result<()> {
    processes(3, 4)
}

fn two_hundred_processes() -> Result<()> {
    processes(200, 16)
}

/// Processes that merge the same new content at the same moment still get one copy of it.
fn concurrent_merges() -> Result<()> {
    const PROCESSES: usize = 8;
    const PAGES: usize = 64;
    for round in 0..10 {
        let id = |page: usize| 1 + (round * PAGES + page) as u64;
        let gate = Gate::closed()?;
        let mut children = Vec::new();
        for number in 0..PROCESSES {
            let gate = &gate;
            children.push(Child::spawn(move |parent| {
                // Half of them have the pages in the other order.
                let own = |page: usize| match number % 2 {
                    0 => id(page),
                    _ => id(PAGES - 1 - page),
                };
                let map = Map::anon(PAGES)?;
                map.no_huge();
                map.fill_all(own);
                parent.go()?;
                gate.wait()?;
                map.merge()?;
                parent.send(map.addr() as u64)?;
                parent.pause()?;
                map.expect_all(own)
            })?);
        }
        children.iter().try_for_each(|child| child.pause())?;
        gate.open()?;
        let mut pfns = Vec::new();
        for child in &children {
            let addr = child.receive()? as usize;
            pfns.extend(child.pagemap()?.pfns(addr, PAGES)?);
        }
        let found = copies(&pfns);
        ensure!(
            found == PAGES,
            "round {round}: {found} copies of {PAGES} contents"
        );
        for child in children {
            child.go()?;
            child.join()?;
        }
    }
    Ok(())
}

/// Another thread merges all the time while this one forks.
fn merge_while_forking() -> Result<()> {
    let map = Map::filled(&[5; 256])?;
    map.fill_all(|page| 5 + page as u64 % 3);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let most = SKSM.number("max_page_sharing")?;
    ensure!(most >= 2, "max_page_sharing is {most}");
    std::thread::scope(|scope| {
        let merger = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                map.merge()?;
            }
            anyhow::Ok(())
        });
        let rounds = quarter_where_slow(100)? as u64;
        let result = (0..rounds).try_for_each(|round| {
            let child = Child::spawn(|_| {
                map.expect_all(|page| 5 + page as u64 % 3)?;
                map.fill(round as usize, 77);
                map.merge()?;
                map.expect(round as usize, 77)
            })?;
            (0..256).for_each(|page| map.fill(page, 5 + page as u64 % 3));
            child.join()?;
            map.expect_all(|page| 5 + page as u64 % 3)
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        merger.join().expect("the merging thread panicked")?;
        result
    })
}
