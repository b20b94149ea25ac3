//! Reclaim of merged pages: contents stay right; sharing may be lost and comes back by merging again.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::{self, Swap};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;

use crate::expect::{apart, copies, merged, merging, one_page};
use crate::reclaim::{
    account, all_gone, all_out, all_out_here, swapped_here, swapped_there, written,
};
use crate::writers::{beside, count, for_a_while_until};

pub const TESTS: &[Test] = &[
    test("swap/swapped-out-pages-stay-out", swapped_out_stay_out),
    test("swap/read-back-and-merged", read_back_and_merged),
    test("swap/published-pages", published_pages),
    test("swap/merged-pages", merged_pages),
    test("swap/swapoff", swapoff),
    test("swap/reclaim-by-control-group", reclaim_by_group),
    test("swap/every-mapping-is-found", every_mapping_is_found),
    test("swap/limit-of-control-group", limit_of_group),
    test("swap/writes-and-reclaim-meanwhile", writes_and_reclaim),
    test("swap/parted-then-freed-by-parent", parted_then_freed),
    test("swap/freed-page-is-shared-again", || {
        freed_and_shared_again(|map| map.merge())
    }),
];

/// Memory without huge pages, with these contents, in this process's group.
fn filled(pages: usize, id: impl Fn(usize) -> u64) -> Result<Map> {
    let map = Map::anon(pages)?;
    map.no_huge();
    map.fill_all(id);
    Ok(map)
}

fn expect_copies(map: &Map, wanted: usize) -> Result<()> {
    let found = copies(&map.pfns()?);
    ensure!(found == wanted, "{found} copies, not {wanted}");
    Ok(())
}

fn swapped_out_stay_out() -> Result<()> {
    let _swap = Swap::on()?;
    let map = Map::filled(&[5; 16])?;
    map.advise(libc::MADV_PAGEOUT).context("MADV_PAGEOUT")?;
    let out = swapped_here(&map)?;
    ensure!(out > 8, "only {out} of 16 pages were paged out");
    let before = Pagemap::own()?.entries(map.addr(), 16)?;
    map.merge()?;
    let after = Pagemap::own()?.entries(map.addr(), 16)?;
    for (before, after) in before.iter().zip(after) {
        ensure!(!before.swapped() || *before == after, "a page came back");
    }
    map.expect_all(|_| 5)?;
    map.merge()?;
    one_page(&map.pfns()?)
}

/// Pages that came back and still have their place in swap space.
fn read_back_and_merged() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("back")?;
    group.enter()?;
    let map = filled(64, |_| 5)?;
    for round in 0..10 {
        all_out_here(&group, &map)?;
        map.expect_all(|_| 5)?;
        map.merge()?;
        expect_copies(&map, 1).with_context(|| format!("round {round}"))?;
        // Now merged pages.
        all_out_here(&group, &map)?;
        map.fill(round, 5);
    }
    map.expect_all(|_| 5)
}

fn published_pages() -> Result<()> {
    let _swap = Swap::on()?;
    let id = |page: usize| page as u64 + 1;
    let map = filled(64, id)?;
    map.merge()?;
    map.advise(libc::MADV_PAGEOUT).context("MADV_PAGEOUT")?;
    let out = swapped_here(&map)?;
    ensure!(out > 56, "{out} of 64 published pages were paged out");
    let twin = filled(64, id)?;
    twin.merge()?;
    map.expect_all(id)?;
    map.merge()?;
    ensure!(
        map.pfns()? == twin.pfns()?,
        "merging again did not restore sharing"
    );
    twin.fill_all(|page| page as u64 + 100);
    map.expect_all(id)
}

/// Pages that many share go out for all of them, and sharing comes back, again and again.
fn merged_pages() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("merged")?;
    group.enter()?;
    let id = |page: usize| 1 + page as u64 % 4;
    let map = filled(64, id)?;
    map.merge()?;
    expect_copies(&map, 4)?;
    let before = written()?;
    for round in 0..5 {
        all_out_here(&group, &map)?;
        ensure!(written()? - before >= 4, "nothing was written");
        let account = account()?;
        ensure!(
            account >= 64,
            "by its own account this process has {account} of 64 pages in swap space"
        );
        map.expect_all(id)?;
        map.merge()?;
        expect_copies(&map, 4).with_context(|| format!("round {round}"))?;
    }
    map.fill_all(|page| page as u64);
    apart(&map.pfns()?[1..])?;
    map.expect_all(|page| page as u64)
}

/// Taking swap space away brings shared pages back for all who share them.
fn swapoff() -> Result<()> {
    let swap = Swap::on()?;
    let group = Cgroup::new("swapoff")?;
    group.enter()?;
    let id = |page: usize| 1 + page as u64 % 200;
    let map = filled(256, id)?;
    map.merge()?;
    expect_copies(&map, 200)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.expect_all(id)
    })?;
    child.pause()?;
    let maps = [(&Pagemap::own()?, &map), (&child.pagemap()?, &map)];
    all_out(&group, &maps)?;
    // Beside those that are out.
    let more = merged(2, 1)?;
    swap::off_all()?;
    let left = swapped_here(&map)? + swapped_there(&child, &map)?;
    ensure!(left == 0, "{left} pages are in swap space that is off");
    child.go()?;
    child.join()?;
    map.expect_all(id)?;
    map.merge()?;
    expect_copies(&map, 200)?;
    more.expect_all(|_| 1)?;
    drop(swap);
    Ok(())
}

/// Three processes share pages, and the group that they are in has to give up memory.
fn reclaim_by_group() -> Result<()> {
    const PAGES: usize = 1024;
    const CONTENTS: usize = 300;
    const ATTEMPTS: usize = 10;
    let _swap = Swap::on()?;
    let group = Cgroup::new("reclaim")?;
    let id = |page: usize| 1 + (page % CONTENTS) as u64;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let body = |parent: &sksm_guest::memory::process::Link| {
        group.enter()?;
        map.fill_all(id);
        for _ in 0..4 {
            map.merge()?;
            parent.meet()?;
            parent.meet()?;
            map.expect_all(id)?;
            (0..PAGES)
                .step_by(7)
                .for_each(|page| map.fill(page, id(page)));
        }
        Ok(())
    };
    let children = (0..3)
        .map(|_| Child::spawn(body))
        .collect::<Result<Vec<_>>>()?;
    let all = |what: fn(&Child) -> Result<()>| children.iter().try_for_each(what);
    for round in 0..4 {
        all(|child| child.pause())?;
        all(|child| child.go())?;
        all(|child| child.pause())?;
        let start = written()?;
        let mut out = Vec::new();
        for _ in 0..ATTEMPTS {
            group.reclaim(4 << 20)?;
            out = (children.iter().map(|child| swapped_there(child, &map)))
                .collect::<Result<Vec<_>>>()?;
            if out.iter().all(|out| *out >= PAGES / 2) {
                break;
            }
        }
        let pages = written()? - start;
        eprintln!("round {round}: {out:?} of {PAGES} pages out, {pages} pages written");
        ensure!(
            out.iter().all(|out| *out >= PAGES / 2),
            "round {round}: {out:?} of {PAGES} pages were swapped out"
        );
        // Once for all three.
        ensure!(pages > 0, "round {round}: nothing was written");
        all(|child| child.go())?;
    }
    children.into_iter().try_for_each(Child::join)
}

/// Reclaim finds every mapping of a merged page, or it could not swap the page out. Contents repeat often within one page table,
/// and over two processes.
fn every_mapping_is_found() -> Result<()> {
    const PAGES: usize = 1024;
    const CONTENTS: usize = 150;
    let _swap = Swap::on()?;
    let group = Cgroup::new("found")?;
    let id = |page: usize| 1 + (page % CONTENTS) as u64;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let body = |parent: &sksm_guest::memory::process::Link| {
        group.enter()?;
        map.fill_all(id);
        map.merge()?;
        ensure!(copies(&map.pfns()?) == CONTENTS, "not merged");
        parent.meet()?;
        map.expect_all(id)
    };
    let children = [Child::spawn(body)?, Child::spawn(body)?];
    children.iter().try_for_each(|child| child.pause())?;
    let present = |child: &Child| -> Result<usize> {
        let entries = child.pagemap()?.entries(map.addr(), PAGES)?;
        Ok(entries.iter().filter(|entry| entry.present()).count())
    };
    // One attempt may give up at pages that are busy just then; what is never found stays after any number.
    let mut left = [PAGES; 2];
    for _ in 0..10 {
        group.reclaim(64 << 20)?;
        left = [present(&children[0])?, present(&children[1])?];
        if left == [0, 0] {
            break;
        }
    }
    ensure!(
        left.iter().all(|left| *left <= PAGES / 50),
        "{left:?} of {PAGES} mappings cannot be reclaimed"
    );
    children.into_iter().try_for_each(|child| {
        child.go()?;
        child.join()
    })
}

/// A process with more memory than its group may have: zeros, one page very often, and pairs, of which some have to be out.
fn limit_of_group() -> Result<()> {
    const PAGES: usize = (32 << 20) / PAGE;
    const LIMIT: usize = 6 << 20;
    const CHUNK: usize = 512;
    let _swap = Swap::on()?;
    let group = Cgroup::new("limit")?;
    // Not memory.max: all pages that reclaim looks at are mapped twice and young, so that it makes them active, and 6.12 may then
    // take them for inactive for up to two seconds and kill the process (DESIGN 10). Above this limit the process waits instead.
    group.write("memory.high", &LIMIT.to_string())?;
    let is_pair = |page: usize| page % 4 >= 2;
    let id = |page: usize| match page % 4 {
        0 => 0,
        1 => 1,
        // Once in the first half of a chunk, and once in the second.
        _ => 2 + (page / CHUNK * CHUNK + page % (CHUNK / 2)) as u64,
    };
    Child::spawn(|_| {
        group.enter()?;
        let map = Map::anon(PAGES)?;
        map.no_huge();
        for start in (0..PAGES).step_by(CHUNK) {
            let chunk = start..start + CHUNK;
            chunk.clone().for_each(|page| map.fill(page, id(page)));
            map.merge_pages(chunk)?;
        }
        // What two pages share, the limit takes away from both.
        let entries = Pagemap::own()?.entries(map.addr(), PAGES)?;
        let out = |page: usize| is_pair(page) && entries[page].swapped();
        let pairs = (0..PAGES).filter(|page| out(*page) && out(page ^ (CHUNK / 2)));
        let pairs = pairs.count() / 2;
        eprintln!("{pairs} of {} merged pages are out", PAGES / 4);
        ensure!(
            pairs * PAGE > LIMIT / 8,
            "{pairs} merged pages were swapped out"
        );
        for _ in 0..2 {
            map.expect_all(id)?;
            map.merge()?;
        }
        map.fill_all(|page| id(page) + 1);
        map.merge()?;
        map.expect_all(|page| id(page) + 1)
    })?
    .join()
}

/// Writes, merges and reclaim of the same pages, and of merged ones beside them, all at the same time.
fn writes_and_reclaim() -> Result<()> {
    const WRITTEN: usize = 64;
    const PAGES: usize = 2 * WRITTEN;
    let _swap = Swap::on()?;
    let group = Cgroup::new("meanwhile")?;
    group.enter()?;
    let map = filled(
        PAGES,
        |page| if page < WRITTEN { 0 } else { page as u64 / 2 },
    )?;
    let pairs = map.part(WRITTEN..PAGES);
    let calls = AtomicUsize::new(0);
    let (written_out, merged_out) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let merge_and_reclaim = || {
        map.merge()?;
        if calls.fetch_add(1, Relaxed) % 3 == 0 {
            group.reclaim(1 << 20)?;
            written_out.fetch_add(swapped_here(&map.part(0..WRITTEN))?, Relaxed);
            merged_out.fetch_add(swapped_here(&pairs)?, Relaxed);
        }
        Ok(())
    };
    let write = |round: u64| {
        count(&map, 0..WRITTEN, round)?;
        // Seldom enough that they get old.
        match round % 16 {
            0 => pairs.expect_all(|page| (WRITTEN + page) as u64 / 2),
            _ => Ok(()),
        }
    };
    let counts = || [&written_out, &merged_out].map(|count| count.load(Relaxed));
    let seen = || counts().iter().all(|out| *out > 0);
    merging(|| beside(2, merge_and_reclaim, |_| for_a_while_until(seen, write)))?;
    let out = counts();
    eprintln!("out, of written and of merged pages: {out:?}");
    ensure!(
        out.iter().all(|out| *out > 0),
        "hardly anything was swapped out: {out:?}"
    );
    Ok(())
}

/// The last user of a merged page frees it, then others come to share it, and it is reclaimed: they keep what they have.
pub fn freed_and_shared_again(merge: impl Fn(&Map) -> Result<()>) -> Result<()> {
    const PAGES: usize = 32;
    let _swap = Swap::on()?;
    let group = Cgroup::new("freed")?;
    group.enter()?;
    let id = |page: usize| page as u64 % (PAGES as u64 / 2) + 1;
    let freed = filled(PAGES, id)?;
    merge(&freed)?;
    expect_copies(&freed, PAGES / 2)?;
    // Each page has one user now.
    (PAGES / 2..PAGES).for_each(|page| freed.fill(page, page as u64 + 100));
    let pages = freed.pfns()?;
    freed.advise_pages(0..PAGES / 2, libc::MADV_FREE)?;
    let kept = filled(PAGES / 2, id)?;
    merge(&kept)?;
    ensure!(
        kept.pfns()? == pages[..PAGES / 2],
        "the pages were not shared again"
    );
    all_gone(&group, &Pagemap::own()?, &kept)?;
    kept.expect_all(id)?;
    for page in 0..PAGES / 2 {
        freed
            .expect(page, id(page))
            .or_else(|_| freed.expect(page, 0))?;
    }
    Ok(())
}

/// Parted pages are copies that nobody has written: where parent and child share one and the parent frees it, the child keeps
/// what is in it.
fn parted_then_freed() -> Result<()> {
    const PAGES: usize = 32;
    let _swap = Swap::on()?;
    let group = Cgroup::new("parted")?;
    group.enter()?;
    let id = |page: usize| page as u64 % 4 + 1;
    let map = filled(PAGES, id)?;
    map.merge()?;
    expect_copies(&map, 4)?;
    map.advise(libc::MADV_UNMERGEABLE)?;
    apart(&map.pfns()?)?;
    let child = Child::spawn(|parent| {
        parent.receive()?;
        map.expect_all(id)
    })?;
    map.advise(libc::MADV_FREE)?;
    all_gone(&group, &child.pagemap()?, &map)?;
    child.send(0)?;
    child.join()
}
