//! NUMA nodes: which pages merge, and moving merged pages between nodes, also while they are used.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Result, ensure};
use libc::{MAP_ANONYMOUS, MAP_SHARED};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::numa::{self, NODES, migrate, move_all, nodes, try_move};
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::{Child, Link};

use crate::expect::{apart, copies, merging, one_page};
use crate::moving::compact;
use crate::writers::{beside, for_a_while_until};

pub const TESTS: &[Test] = &[
    test("numa/merge-across-nodes", across),
    test("numa/merge-within-nodes", within),
    test("numa/setting-is-for-later-merges", setting),
    test("numa/found-after-migration", found_after_migration),
    test("numa/key-follows-migration", key_follows),
    test("numa/move_pages", moved_pages),
    test("numa/migrate_pages", migrated_pages),
    test("numa/moved-while-mapped", moved_while_mapped),
    test("numa/moved-while-used", || moved_while_used(true)),
    test("numa/moved-while-used-within-nodes", || {
        moved_while_used(false)
    }),
];

fn merge_across_nodes(on: bool) -> Result<()> {
    numa::needed()?;
    SKSM.write("merge_across_nodes", u8::from(on))
}

/// Pages of these contents on one node, not merged.
fn on(node: i32, contents: &[u64]) -> Result<Map> {
    let map = Map::filled(contents)?;
    move_all(0, &map, node)?;
    Ok(map)
}

fn all_on(map: &Map, node: i32) -> Result<()> {
    let found = nodes(0, map)?;
    ensure!(
        found.iter().all(|found| *found == node),
        "not on node {node}: {found:?}"
    );
    Ok(())
}

fn across() -> Result<()> {
    merge_across_nodes(true)?;
    let maps = [on(0, &[5; 4])?, on(1, &[5; 4])?];
    maps.iter().try_for_each(Map::merge)?;
    one_page(&[maps[0].pfns()?, maps[1].pfns()?].concat())?;
    maps.iter().try_for_each(|map| map.expect_all(|_| 5))
}

fn within() -> Result<()> {
    merge_across_nodes(false)?;
    let maps = [on(0, &[5; 4])?, on(1, &[5; 4])?];
    maps.iter().try_for_each(Map::merge)?;
    for (map, node) in maps.iter().zip(NODES) {
        one_page(&map.pfns()?)?;
        all_on(map, node)?;
        map.expect_all(|_| 5)?;
    }
    apart(&[maps[0].pfn(0)?, maps[1].pfn(0)?])
}

/// What is merged stays as it is when the setting changes.
fn setting() -> Result<()> {
    merge_across_nodes(true)?;
    let first = [on(0, &[5; 2])?, on(1, &[5; 2])?];
    first.iter().try_for_each(Map::merge)?;
    let page = first[0].pfn(0)?;
    merge_across_nodes(false)?;
    let second = [on(0, &[5; 2])?, on(1, &[5; 2])?];
    second.iter().try_for_each(Map::merge)?;
    apart(&[page, second[0].pfn(0)?, second[1].pfn(0)?])?;
    merge_across_nodes(true)?;
    let third = [on(0, &[5; 2])?, on(1, &[5; 2])?];
    third.iter().try_for_each(Map::merge)?;
    for map in first.iter().chain(&third) {
        one_page(&[map.pfns()?, vec![page]].concat())?;
    }
    for (map, node) in second.iter().zip(NODES) {
        one_page(&map.pfns()?)?;
        all_on(map, node)?;
    }
    for map in first.iter().chain(&second).chain(&third) {
        map.expect_all(|_| 5)?;
    }
    Ok(())
}

/// Wherever a page has moved to, it is found by content where nodes do not matter.
fn found_after_migration() -> Result<()> {
    merge_across_nodes(true)?;
    let map = on(0, &[5; 3])?;
    map.merge()?;
    for node in [1, 0, 1] {
        let before = map.pfn(0)?;
        move_all(0, &map, node)?;
        ensure!(map.pfn(0)? != before, "the page did not move");
        map.expect_all(|_| 5)?;
        for other in NODES {
            let more = on(other, &[5; 2])?;
            more.merge()?;
            one_page(&[map.pfns()?, more.pfns()?].concat())?;
        }
    }
    Ok(())
}

/// Where nodes matter, a page that has left its node is not found by pages there.
fn key_follows() -> Result<()> {
    merge_across_nodes(false)?;
    let map = on(0, &[5; 3])?;
    map.merge()?;
    let mut kept = Vec::new();
    for node in [1, 0, 1, 0] {
        move_all(0, &map, node)?;
        for other in NODES {
            let more = on(other, &[5; 2])?;
            more.merge()?;
            // Found or not: no page takes a mapping on the other node.
            one_page(&more.pfns()?)?;
            all_on(&more, other)?;
            ensure!(
                other == node || more.pfn(0)? != map.pfn(0)?,
                "pages of two nodes merged"
            );
            kept.push(more);
        }
        one_page(&map.pfns()?)?;
        all_on(&map, node)?;
        map.expect_all(|_| 5)?;
    }
    kept.iter().try_for_each(|map| map.expect_all(|_| 5))?;
    map.fill(0, 6);
    map.expect_all(|page| if page == 0 { 6 } else { 5 })?;
    kept.iter().try_for_each(|map| map.expect_all(|_| 5))
}

/// Two processes that share pages of several contents with this one.
fn sharers(map: &Map) -> Result<Vec<Child>> {
    let body = |parent: &Link| {
        map.fill_all(id);
        map.merge()?;
        parent.meet()?;
        map.expect_all(id)?;
        map.fill(0, 99);
        map.expect_all(|page| if page == 0 { 99 } else { id(page) })
    };
    let children = [Child::spawn(body)?, Child::spawn(body)?];
    children.iter().try_for_each(|child| child.pause())?;
    map.merge()?;
    Ok(children.into())
}

fn id(page: usize) -> u64 {
    1 + page as u64 / 4
}

const PAGES: usize = 64;

fn shared() -> Result<(Map, Vec<Child>)> {
    merge_across_nodes(true)?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(id);
    let children = sharers(&map)?;
    Ok((map, children))
}

/// The three share each content's page still, and it is on this node.
fn still_shared(map: &Map, children: &[Child], node: i32) -> Result<Vec<u64>> {
    let pfns = map.pfns()?;
    ensure!(copies(&pfns) == PAGES / 4, "moving parted merged pages");
    for child in children {
        ensure!(
            child.pagemap()?.pfns(map.addr(), PAGES)? == pfns,
            "a process maps another page"
        );
    }
    all_on(map, node)?;
    map.expect_all(id)?;
    Ok(pfns)
}

fn part(map: &Map, children: Vec<Child>) -> Result<()> {
    for child in children {
        child.go()?;
        child.join()?;
    }
    map.expect_all(id)
}

fn moved_pages() -> Result<()> {
    let (map, children) = shared()?;
    let pids = [0, children[0].pid(), children[1].pid()];
    let mut before = Vec::new();
    for (pid, node) in pids.into_iter().cycle().zip([0, 1, 0, 1, 0, 1]) {
        move_all(pid, &map, node)?;
        let now = still_shared(&map, &children, node)?;
        ensure!(now != before, "nothing moved");
        before = now;
    }
    part(&map, children)
}

fn migrated_pages() -> Result<()> {
    let (map, children) = shared()?;
    move_all(0, &map, 0)?;
    for (child, from, to) in [(0, 0, 1), (1, 1, 0), (0, 0, 1)] {
        let pid = children[child].pid();
        // It moves each page at the first of its mappings, and tells of the others as not moved.
        let mut found = Vec::new();
        for _ in 0..20 {
            migrate(pid, from, to)?;
            found = nodes(pid, &map)?;
            if found.iter().all(|found| *found == to) {
                break;
            }
        }
        ensure!(
            found.iter().all(|found| *found == to),
            "pages did not move to node {to}: {found:?}"
        );
        still_shared(&map, &children, to)?;
    }
    part(&map, children)
}

/// A merge has found the pages that it is about to map when these are moved, all at once: none is left behind in a frame that only
/// page tables know of, out of reach of reclaim, migration and memory failure.
fn moved_while_mapped() -> Result<()> {
    /// A batch of a merge, and of migration.
    const ALL: usize = 512;
    merge_across_nodes(true)?;
    let id = |page: usize| 1 + page as u64;
    let home = Map::anon(ALL)?;
    home.no_huge();
    home.fill_all(id);
    home.merge()?;
    let twins = Map::anon(ALL)?;
    twins.no_huge();
    let other = on(0, &[0])?;
    let (moved, merged) = (AtomicUsize::new(0), AtomicUsize::new(0));
    NODES
        .iter()
        .try_for_each(|node| move_all(0, &home, *node))?;
    let seen = || merged.load(Relaxed) > 0;
    for_a_while_until(seen, |_| {
        twins.fill_all(id);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| {
                let mut was = nodes(0, &home)?;
                for round in 0.. {
                    try_move(0, &home, NODES[round % 2])?;
                    let is = nodes(0, &home)?;
                    moved.fetch_add(
                        was.iter().zip(&is).filter(|(was, is)| was != is).count(),
                        Relaxed,
                    );
                    was = is;
                    if done.load(Relaxed) {
                        break;
                    }
                }
                anyhow::Ok(())
            });
            let result = twins.merge();
            done.store(true, Relaxed);
            mover
                .join()
                .expect("the thread that moves pages panicked")?;
            result
        })?;
        // What waits to be put on a list is put there before pages are moved.
        try_move(0, &other, nodes(0, &other)?[0] ^ 1)?;
        let pfns = twins.pfns()?;
        for (page, pfn) in pfns.iter().enumerate() {
            let flags = Flags::of(*pfn)?;
            ensure!(
                !flags.ksm() || flags.lru(),
                "page {page} is mapped at frame {pfn:#x}, which was moved away: {flags:x?}, now at {:#x}",
                home.pfn(page)?
            );
        }
        let both = pfns.iter().zip(home.pfns()?);
        merged.fetch_add(both.filter(|(one, other)| *one == other).count(), Relaxed);
        twins.expect_all(id)?;
        home.expect_all(id)
    })?;
    eprintln!("{merged:?} merged, {moved:?} moved");
    // Where checkers make a merge slow, it may hold its references for as long as all attempts to move take.
    ensure!(seen(), "nothing was merged");
    Ok(())
}

/// Pages go from node to node, by every means, while three processes write, read and merge them.
fn moved_while_used(across: bool) -> Result<()> {
    let wanted = quarter_where_slow(400)?;
    merge_across_nodes(across)?;
    let map = Map::filled(&[1; PAGES])?;
    let stop = Map::new(1, WRITE, MAP_SHARED | MAP_ANONYMOUS, None)?;
    let body = |number: u64| {
        let (map, stop) = (&map, &stop);
        Child::spawn(move |_| {
            let mut shadow = [1; PAGES];
            let mut write = |round: u64| {
                for step in 0..4 {
                    let page = (round * 7 + step * 17 + number) as usize % PAGES;
                    shadow[page] = 1 + (round / 16 + page as u64 / 16) % 6;
                    map.fill(page, shadow[page]);
                }
                map.expect_all(|page| shadow[page])
            };
            let go_on = |round: &u64| *round == 0 || stop.get(0, 0) == 0;
            let work = |_: &_| (0..).take_while(go_on).try_for_each(&mut write);
            beside(1, || map.merge(), work)
        })
    };
    merging(|| {
        let children = [body(0)?, body(1)?, body(2)?];
        let deadline = deadline();
        let mut moved = 0;
        for round in 0.. {
            let child = &children[round % 3];
            let to = NODES[round / 3 % 2];
            let before = nodes(child.pid(), &map)?;
            match round % 4 {
                0 => migrate(child.pid(), 1 - to, to).map(drop)?,
                1 => compact()?,
                _ => try_move(child.pid(), &map, to)?,
            }
            let after = nodes(child.pid(), &map)?;
            let has_moved = |(was, is): &(&i32, &i32)| **was == 1 - to && **is == to;
            moved += before.iter().zip(&after).filter(has_moved).count();
            if moved >= wanted {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "only {moved} mappings have moved"
            );
        }
        stop.put(0, 0, 1);
        children.into_iter().try_for_each(Child::join)
    })
}
