//! Reclaim of merged pages: contents stay right; sharing may be lost and comes back by merging again.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use sksm_guest::cgroup::Cgroup;
use sksm_guest::memory::{Map, PAGE};
use sksm_guest::pagemap::Pagemap;
use sksm_guest::process::Child;
use sksm_guest::report::{Test, test};
use sksm_guest::swap::{self, Swap};

use crate::expect::{apart, copies, merged, merging, one_page};
use crate::writers::{beside, count, for_a_while};

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
];

/// How many pages of the mapping are in swap space.
fn swapped(map: &Map) -> Result<usize> {
    let entries = Pagemap::own()?.entries(map.addr(), map.pages())?;
    Ok(entries.iter().filter(|entry| entry.swapped()).count())
}

fn page_out(map: &Map) -> Result<()> {
    map.advise(libc::MADV_PAGEOUT).context("MADV_PAGEOUT")
}

fn swapped_out_stay_out() -> Result<()> {
    let _swap = Swap::on()?;
    let map = Map::filled(&[5; 16])?;
    page_out(&map)?;
    let out = swapped(&map)?;
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
    let map = Map::filled(&[5; 64])?;
    for round in 0..10 {
        page_out(&map)?;
        map.expect_all(|_| 5)?;
        map.merge()?;
        ensure!(
            copies(&map.pfns()?) == 1,
            "round {round}: {} copies",
            copies(&map.pfns()?)
        );
        page_out(&map)?;
        map.fill(round, 5);
    }
    map.expect_all(|_| 5)
}

fn published_pages() -> Result<()> {
    let _swap = Swap::on()?;
    let map = Map::anon(64)?;
    map.no_huge();
    map.fill_all(|page| page as u64 + 1);
    map.merge()?;
    page_out(&map)?;
    eprintln!("{} of 64 published pages were paged out", swapped(&map)?);
    let twin = Map::anon(64)?;
    twin.no_huge();
    twin.fill_all(|page| page as u64 + 1);
    twin.merge()?;
    map.expect_all(|page| page as u64 + 1)?;
    map.merge()?;
    ensure!(
        map.pfns()? == twin.pfns()?,
        "merging again did not restore sharing"
    );
    twin.fill_all(|page| page as u64 + 100);
    map.expect_all(|page| page as u64 + 1)
}

fn merged_pages() -> Result<()> {
    let _swap = Swap::on()?;
    let map = Map::anon(64)?;
    map.no_huge();
    map.fill_all(|page| 1 + page as u64 % 4);
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 4, "not merged");
    for round in 0..5 {
        page_out(&map)?;
        map.expect_all(|page| 1 + page as u64 % 4)?;
        map.merge()?;
        ensure!(
            copies(&map.pfns()?) == 4,
            "round {round}: merging again did not restore sharing"
        );
    }
    map.fill_all(|page| page as u64);
    apart(&map.pfns()?[1..])?;
    map.expect_all(|page| page as u64)
}

fn swapoff() -> Result<()> {
    let swap = Swap::on()?;
    let map = Map::anon(256)?;
    map.no_huge();
    map.fill_all(|page| 1 + page as u64 % 200);
    map.merge()?;
    page_out(&map)?;
    let more = merged(2, 1)?;
    swap::off_all()?;
    map.expect_all(|page| 1 + page as u64 % 200)?;
    map.merge()?;
    ensure!(
        copies(&map.pfns()?) == 200,
        "{} copies",
        copies(&map.pfns()?)
    );
    more.expect_all(|_| 1)?;
    drop(swap);
    Ok(())
}

/// Three processes share pages, and the group that they are in has to give up memory.
fn reclaim_by_group() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("reclaim")?;
    const PAGES: usize = 1024;
    let id = |page: usize| page as u64 % 300;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let body = |parent: &sksm_guest::process::Link| {
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
        let whole = group.reclaim(4 << 20)?;
        let out = |child: &Child| -> Result<usize> {
            let entries = child.pagemap()?.entries(map.addr(), PAGES)?;
            Ok(entries.iter().filter(|entry| entry.swapped()).count())
        };
        eprintln!(
            "round {round}: reclaim {}, {} pages of the first process swapped out",
            if whole { "complete" } else { "in part" },
            out(&children[0])?
        );
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
    let body = |parent: &sksm_guest::process::Link| {
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

/// A process with more memory than its group may have, half of it equal.
fn limit_of_group() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("limit")?;
    const PAGES: usize = (32 << 20) / PAGE;
    group.write("memory.max", &(16 << 20).to_string())?;
    let id = |page: usize| match page % 4 {
        0 => 0,
        1 => 1,
        _ => page as u64,
    };
    Child::spawn(|_| {
        group.enter()?;
        let map = Map::anon(PAGES)?;
        map.no_huge();
        for page in 0..PAGES {
            map.fill(page, id(page));
            if page % 512 == 511 {
                map.merge_pages(page - 511..page + 1)?;
            }
        }
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

/// Writes, merges and page-out of the same pages, all at the same time.
fn writes_and_reclaim() -> Result<()> {
    let _swap = Swap::on()?;
    const PAGES: usize = 128;
    let map = Map::filled(&[0; PAGES])?;
    let outs = AtomicUsize::new(0);
    let merge_and_page_out = || {
        map.merge()?;
        if outs.fetch_add(1, Relaxed) % 3 == 0 {
            page_out(&map)?;
        }
        Ok(())
    };
    let write = |round| count(&map, 0..PAGES, round);
    merging(|| beside(2, merge_and_page_out, |_| for_a_while(write)))
}
