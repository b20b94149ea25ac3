//! KSM beside SKSM, on the same process and range.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libc::{MADV_MERGEABLE, MADV_UNMERGEABLE};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::Swap;
use sksm_guest::machine::sysfs::{Counters, KSM, zero_pages_here};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::{apart, copies, merged, merging, one_page};
use crate::reclaim::all_out;
use crate::swapping::freed_and_shared_again;
use crate::writers::{beside, count, for_a_while, for_a_while_until};

pub const TESTS: &[Test] = &[
    test("ksm/works-as-before", works_as_before),
    test("ksm/leaves-merged-pages-alone", leaves_merged_pages_alone),
    test("ksm/its-pages-are-left-alone", its_pages_are_left_alone),
    test("ksm/same-range-with-writes", same_range_with_writes),
    test("ksm/unmergeable-breaks", unmergeable_breaks),
    test("ksm/unmergeable-breaks-zero-pages", unmergeable_breaks_zero),
    test("ksm/run-2-breaks", run_2_breaks),
    test("ksm/prctl-off-breaks", prctl_off_breaks),
    test("ksm/prctl-on", prctl_on),
    test("ksm/counters-of-each", counters_of_each),
    test("ksm/unmergeable-while-merging", unmergeable_while_merging),
    test("ksm/run-2-while-merging", run_2_while_merging),
    test("ksm/prctl-while-merging", prctl_while_merging),
    test("ksm/pages-of-each-stay-apart", pages_of_each_stay_apart),
    test("ksm/exit-with-both", exit_with_both),
    test("ksm/mremap-leaves-merged-pages", mremap_leaves_merged),
    test("ksm/freed-page-is-shared-again", freed_page_is_shared_again),
    test("ksm/pages-of-two-are-read-at-large", read_at_large),
];

/// Lets ksmd scan without a pause.
pub fn unthrottled() -> Result<()> {
    KSM.write("pages_to_scan", 10_000)?;
    KSM.write("sleep_millisecs", 0)?;
    if KSM.text("smart_scan").is_ok() {
        KSM.write("smart_scan", 0)?;
    }
    KSM.write("run", 1)
}

/// Waits until ksmd has been all around that often.
pub fn scans(times: i64) -> Result<()> {
    let start = KSM.number("full_scans")?;
    let deadline = deadline();
    while KSM.number("full_scans")? - start < times {
        ensure!(Instant::now() < deadline, "ksmd does not scan");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn works_as_before() -> Result<()> {
    unthrottled()?;
    let map = Map::filled(&[5; 10])?;
    map.advise(MADV_MERGEABLE)?;
    scans(4)?;
    one_page(&map.pfns()?)?;
    map.expect_all(|_| 5)?;
    map.fill(0, 6);
    map.advise(MADV_UNMERGEABLE)?;
    apart(&map.pfns()?)?;
    map.expect_all(|page| if page == 0 { 6 } else { 5 })?;
    merged(2, 5).map(drop)
}

fn leaves_merged_pages_alone() -> Result<()> {
    let map = merged(10, 5)?;
    let unique = merged(1, 6)?;
    let (page, start) = (map.pfn(0)?, Counters::now()?);
    map.advise(MADV_MERGEABLE)?;
    unique.advise(MADV_MERGEABLE)?;
    // These are KSM's: equal to ours, yet not ours.
    let other = Map::filled(&[5, 5, 6])?;
    other.advise(MADV_MERGEABLE)?;
    unthrottled()?;
    scans(4)?;
    one_page(&[map.pfns()?, vec![page]].concat())?;
    ensure!(other.pfn(0)? != page, "KSM took a page of SKSM's");
    ensure!(other.pfn(2)? != unique.pfn(0)?, "KSM took a page of SKSM's");
    let change = start.change()?;
    ensure!(
        change.held().iter().all(|(_, change)| *change == 0),
        "counters changed: {change:?}"
    );
    map.expect_all(|_| 5)?;
    other.expect_all(|page| [5, 5, 6][page])
}

fn its_pages_are_left_alone() -> Result<()> {
    unthrottled()?;
    let map = Map::filled(&[5; 10])?;
    map.advise(MADV_MERGEABLE)?;
    scans(4)?;
    let before = map.pfns()?;
    one_page(&before)?;
    let sharing = KSM.number("pages_sharing")?;
    map.merge()?;
    merged(3, 5)?.expect_all(|_| 5)?;
    ensure!(map.pfns()? == before, "pages that KSM merged changed");
    ensure!(
        KSM.number("pages_sharing")? == sharing,
        "KSM's counters changed"
    );
    map.fill(3, 6);
    map.expect_all(|page| if page == 3 { 6 } else { 5 })
}

fn same_range_with_writes() -> Result<()> {
    const PAGES: usize = 64;
    unthrottled()?;
    let map = Map::filled(&[5; PAGES])?;
    map.advise(MADV_MERGEABLE)?;
    let scans_before = KSM.number("full_scans")?;
    let mut shadow = [5; PAGES];
    let write = |round: u64| {
        for (page, id) in shadow.iter_mut().enumerate() {
            if (page as u64 + round) % 4 == 0 {
                *id = (round + page as u64 / 8) % 5;
                map.fill(page, *id);
            }
        }
        if round % 16 == 15 {
            map.advise(MADV_UNMERGEABLE)?;
            map.expect_all(|page| shadow[page])?;
            map.advise(MADV_MERGEABLE)?;
        }
        map.expect_all(|page| shadow[page])
    };
    let scanned = || {
        KSM.number("full_scans")
            .is_ok_and(|scans| scans > scans_before)
    };
    merging(|| beside(1, || map.merge(), |_| for_a_while_until(scanned, write)))?;
    ensure!(scanned(), "ksmd did not scan");
    Ok(())
}

/// After `breaking`, pages that were merged stand alone again, and the engine holds nothing.
fn breaks(start: &Counters, map: &Map, breaking: impl FnOnce() -> Result<()>) -> Result<()> {
    map.merge()?;
    ensure!(copies(&map.pfns()?) < map.pages(), "nothing merged");
    breaking()?;
    apart(&map.pfns()?)?;
    let change = start.change()?;
    let held = &change.held()[..4];
    ensure!(held.iter().all(|(_, change)| *change == 0), "{change:?}");
    Ok(())
}

fn unmergeable_breaks() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[5, 5, 5, 6, 7, 7])?;
    map.advise(MADV_MERGEABLE)?;
    breaks(&start, &map, || Ok(map.advise(MADV_UNMERGEABLE)?))?;
    map.expect_all(|page| [5, 5, 5, 6, 7, 7][page])?;
    map.merge()?;
    one_page(&map.pfns()?[..3])
}

fn unmergeable_breaks_zero() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[0; 4])?;
    map.advise(MADV_MERGEABLE)?;
    breaks(&start, &map, || Ok(map.advise(MADV_UNMERGEABLE)?))?;
    map.expect_all(|_| 0)
}

fn run_2_breaks() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[5, 5, 5, 6, 7, 7])?;
    map.advise(MADV_MERGEABLE)?;
    breaks(&start, &map, || KSM.write("run", 2))?;
    map.expect_all(|page| [5, 5, 5, 6, 7, 7][page])
}

/// For all memory of the process, that of later calls included.
fn set_memory_merge(on: bool) -> Result<()> {
    const SET_MEMORY_MERGE: i32 = 67;
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(SET_MEMORY_MERGE, i32::from(on), 0, 0, 0) })?;
    Ok(())
}

fn prctl_off_breaks() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[5, 5, 5, 6, 7, 7])?;
    set_memory_merge(true)?;
    breaks(&start, &map, || set_memory_merge(false))?;
    map.expect_all(|page| [5, 5, 5, 6, 7, 7][page])
}

/// The engine's merged pages, of those that this process maps: how many, and how many mappings beyond the first.
fn ours(start: &Counters, shared: i64, sharing: i64, when: &str) -> Result<()> {
    let change = start.change()?;
    let found = (change.pages_shared, change.pages_sharing);
    ensure!(
        found == (shared, sharing),
        "{when}: SKSM's pages {change:?}"
    );
    Ok(())
}

/// KSM's counters, of the system and of this process.
struct Ksm([i64; 3]);

impl Ksm {
    fn now() -> Result<Self> {
        let own = std::fs::read_to_string("/proc/self/ksm_merging_pages")?;
        Ok(Self([
            KSM.number("pages_shared")?,
            KSM.number("pages_sharing")?,
            own.trim().parse()?,
        ]))
    }

    /// Pages shared, mappings beyond the first, and mappings of this process, more than at `self`.
    fn more(&self, wanted: [i64; 3], when: &str) -> Result<()> {
        let now = Self::now()?;
        let found = [0, 1, 2].map(|index| now.0[index] - self.0[index]);
        ensure!(
            found == wanted,
            "{when}: KSM's pages {found:?}, not {wanted:?}"
        );
        Ok(())
    }
}

/// With all of a process's memory KSM's to scan: what merged first stays as it is, what is left KSM merges.
fn prctl_on() -> Result<()> {
    let start = Counters::now()?;
    let before = merged(6, 5)?;
    let page = before.pfn(0)?;
    set_memory_merge(true)?;
    let after = merged(6, 7)?;
    let theirs = Map::filled(&[5, 5, 5, 7, 7, 7])?;
    let pages = after.pfn(0)?;
    unthrottled()?;
    scans(4)?;
    ours(&start, 2, 10, "scanned")?;
    ensure!(before.pfns()? == [page; 6], "KSM took pages from before");
    ensure!(after.pfns()? == [pages; 6], "KSM took pages from after");
    let pfns = theirs.pfns()?;
    one_page(&pfns[..3])?;
    one_page(&pfns[3..])?;
    apart(&[page, pages, pfns[0], pfns[3]])?;
    // Equal to pages of both: it merges with ours, and not with KSM's, which would take it first while it scans.
    KSM.write("run", 0)?;
    let more = Map::filled(&[5, 7])?;
    more.merge()?;
    ensure!(more.pfns()? == [page, pages], "merged with others");
    ours(&start, 2, 12, "merged more")?;
    set_memory_merge(false)?;
    for map in [&before, &after, &theirs] {
        apart(&map.pfns()?)?;
    }
    ours(&start, 0, 0, "broken")?;
    // KSM counts what was broken until it comes by, or is told to forget all.
    KSM.write("run", 2)?;
    before.expect_all(|_| 5)?;
    after.expect_all(|_| 7)?;
    theirs.expect_all(|page| 5 + 2 * (page as u64 / 3))
}

/// Both merge the same content in the same process, and each counts its own pages alone.
fn counters_of_each() -> Result<()> {
    let start = Counters::now()?;
    let of_ours = merged(8, 5)?;
    of_ours.advise(MADV_MERGEABLE)?;
    let ksm = Ksm::now()?;
    let of_theirs = Map::filled(&[5; 10])?;
    of_theirs.advise(MADV_MERGEABLE)?;
    unthrottled()?;
    scans(4)?;
    ours(&start, 1, 7, "scanned")?;
    ksm.more([1, 9, 10], "scanned")?;
    // A merge of KSM's pages is nothing to do.
    of_theirs.merge()?;
    ours(&start, 1, 7, "merged KSM's")?;
    ksm.more([1, 9, 10], "merged KSM's")?;
    of_ours.fill(0, 6);
    of_theirs.fill(0, 7);
    ours(&start, 1, 6, "written")?;
    of_theirs.advise(MADV_UNMERGEABLE)?;
    // It counts them until ksmd comes by.
    scans(4)?;
    ours(&start, 1, 6, "KSM's broken")?;
    ksm.more([0; 3], "KSM's broken")?;
    of_theirs.merge_pages(1..10)?;
    ours(&start, 1, 15, "all merged by one")?;
    ksm.more([0; 3], "all merged by one")?;
    of_ours.advise(MADV_UNMERGEABLE)?;
    ours(&start, 1, 8, "ours broken")?;
    of_ours.expect_all(|page| if page == 0 { 6 } else { 5 })?;
    of_theirs.expect_all(|page| if page == 0 { 7 } else { 5 })
}

/// Merges, writes and checks while ksmd scans and something breaks pages again and again; in the end all are apart.
fn while_merging(breaking: impl Fn(&Map) -> Result<()> + Sync) -> Result<()> {
    const PAGES: usize = 64;
    unthrottled()?;
    let start = Counters::now()?;
    let map = Map::filled(&[0; PAGES])?;
    map.advise(MADV_MERGEABLE)?;
    let write = |round: u64| count(&map, 0..PAGES, round);
    let merging_too = |_: &_| beside(1, || map.merge(), |_| for_a_while(write));
    merging(|| beside(1, || breaking(&map), merging_too))?;
    KSM.write("run", 0)?;
    map.advise(MADV_MERGEABLE)?;
    map.merge()?;
    KSM.write("run", 2)?;
    apart(&map.pfns()?)?;
    let change = start.change()?;
    let held = &change.held()[..4];
    ensure!(held.iter().all(|(_, change)| *change == 0), "{change:?}");
    Ok(())
}

fn unmergeable_while_merging() -> Result<()> {
    while_merging(|map| {
        map.advise(MADV_UNMERGEABLE)?;
        Ok(map.advise(MADV_MERGEABLE)?)
    })
}

fn run_2_while_merging() -> Result<()> {
    while_merging(|map| {
        KSM.write("run", 2)?;
        KSM.write("run", 1)?;
        // What was broken is not scanned any more.
        Ok(map.advise(MADV_MERGEABLE)?)
    })
}

fn prctl_while_merging() -> Result<()> {
    while_merging(|_| {
        set_memory_merge(true)?;
        set_memory_merge(false)
    })
}

/// Two processes with equal contents, one merging with each engine, and both writing: they never come to share a page.
fn pages_of_each_stay_apart() -> Result<()> {
    const PAGES: usize = 64;
    unthrottled()?;
    let start = KSM.number("full_scans")?;
    let map = Map::filled(&[0; PAGES])?;
    let id = |round: u64, page: usize| 1 + (round + page as u64) % 5;
    let child = Child::spawn(|parent| {
        map.advise(MADV_MERGEABLE)?;
        for round in 0.. {
            map.fill_all(|page| id(round, page));
            if parent.receive()? == 0 {
                break;
            }
            map.expect_all(|page| id(round, page))?;
            parent.go()?;
        }
        Ok(())
    })?;
    let merged_by_ksm = Cell::new(0);
    let round = |round: u64| {
        map.fill_all(|page| id(round, page));
        map.merge()?;
        scans(2)?;
        let theirs = child.pagemap()?.pfns(map.addr(), PAGES)?;
        let both = [map.pfns()?, theirs.clone()].concat();
        ensure!(
            copies(&both) == copies(&both[..PAGES]) + copies(&theirs),
            "the two engines share a page"
        );
        ensure!(copies(&both[..PAGES]) == 5, "not merged");
        merged_by_ksm.set(merged_by_ksm.get() + PAGES - copies(&theirs));
        map.expect_all(|page| id(round, page))?;
        child.send(1)?;
        child.pause()
    };
    for_a_while_until(|| merged_by_ksm.get() > 0, round)?;
    ensure!(KSM.number("full_scans")? > start, "ksmd did not scan");
    ensure!(merged_by_ksm.get() > 0, "KSM merged nothing");
    child.send(0)?;
    child.join()
}

fn exit_with_both() -> Result<()> {
    unthrottled()?;
    merging(|| (0..10).try_for_each(exit_round))
}

fn exit_round(round: u64) -> Result<()> {
    let child = |number: u64| {
        Child::spawn(move |_| {
            let map = Map::filled(&[5; 32])?;
            map.fill_all(|page| page as u64 % 4 + round);
            map.advise(MADV_MERGEABLE)?;
            if number == 0 {
                scans(1)?;
            }
            map.merge()?;
            map.fill(number as usize, 9);
            map.expect_all(|page| match page as u64 {
                page if page == number => 9,
                page => page % 4 + round,
            })
        })
    };
    let children = (0..4).map(child).collect::<Result<Vec<_>>>()?;
    children.into_iter().try_for_each(Child::join)
}

/// Moving memory that KSM scans parts KSM's pages, which know where they are mapped, and nothing of SKSM's.
fn mremap_leaves_merged() -> Result<()> {
    let start = Counters::now()?;
    let id = |page: usize| [5, 5, 5, 6, 0, 7, 7, 7][page];
    let map = Map::filled(&[5, 5, 5, 6, 0, 7, 7, 7])?;
    map.merge_pages(0..5)?;
    map.advise(MADV_MERGEABLE)?;
    unthrottled()?;
    scans(4)?;
    KSM.write("run", 0)?;
    let before = map.pfns()?;
    one_page(&before[5..])?;
    let zeros = zero_pages_here()?;
    ours(&start, 1, 2, "merged")?;
    let map = map.moved()?;
    let after = map.pfns()?;
    ensure!(after[..5] == before[..5], "moving parted merged pages");
    apart(&after[5..])?;
    ensure!(zero_pages_here()? == zeros, "the zero page is counted");
    ours(&start, 1, 2, "moved")?;
    map.expect_all(id)?;
    // Wherever it is, its pages are found.
    let twin = Map::filled(&[5, 6])?;
    twin.merge()?;
    one_page(&[twin.pfn(0)?, after[0]])?;
    one_page(&[twin.pfn(1)?, after[3]])?;
    map.fill_all(|page| 20 + page as u64);
    map.expect_all(|page| 20 + page as u64)?;
    twin.expect_all(|page| 5 + page as u64)
}

/// MADV_FREE by the last user of a page of KSM's gives nothing away of those who come to share it.
fn freed_page_is_shared_again() -> Result<()> {
    unthrottled()?;
    freed_and_shared_again(|map| {
        map.advise(MADV_MERGEABLE)?;
        KSM.write("run", 1)?;
        scans(4)?;
        KSM.write("run", 0)
    })
}

/// A process reads its merged pages from swap as one large folio, and another one those of the same slots, elsewhere. Whoever maps a
/// page is found, so that it can be reclaimed again.
fn read_at_large() -> Result<()> {
    const LARGE: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled";
    const RUN: usize = 16;
    if !Path::new(LARGE).exists() {
        return skip("no large folios in this kernel (CONFIG_TRANSPARENT_HUGEPAGE)");
    }
    let _swap = Swap::on()?;
    let group = Cgroup::new("large")?;
    group.enter()?;
    unthrottled()?;
    let id = |page: usize| page as u64 + 1;
    let other = Map::aligned(RUN, RUN * PAGE, PAGE)?;
    let child = Child::spawn(|parent| {
        other.fill_all(id);
        other.advise(MADV_MERGEABLE)?;
        parent.meet()?;
        other.expect_all(id)?;
        parent.meet()?;
        other.expect_all(id)
    })?;
    child.pause()?;
    let room = Map::aligned(RUN, RUN * PAGE, 0)?;
    room.fill_all(id);
    room.advise(MADV_MERGEABLE)?;
    scans(4)?;
    KSM.write("run", 0)?;
    let childs = child.pagemap()?;
    ensure!(
        room.pfns()? == childs.pfns(other.addr(), RUN)?,
        "not merged"
    );
    all_out(&group, &[(&Pagemap::own()?, &room), (&childs, &other)])?;
    fs::write(LARGE, "always").context("cannot enable large folios")?;
    room.advise(libc::MADV_HUGEPAGE)?;
    room.expect_all(id)?;
    child.go()?;
    child.pause()?;
    all_out(&group, &[(&Pagemap::own()?, &room), (&childs, &other)])?;
    room.expect_all(id)?;
    child.go()?;
    child.join()
}
