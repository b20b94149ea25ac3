//! KSM beside SKSM, on the same process and range.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libc::{MADV_MERGEABLE, MADV_UNMERGEABLE};
use sksm_guest::memory::Map;
use sksm_guest::process::{Child, check};
use sksm_guest::report::{Test, test};
use sksm_guest::sysfs::{Counters, KSM};

use crate::expect::{apart, copies, merged, merging, one_page};
use crate::writers::{beside, for_a_while};

pub const TESTS: &[Test] = &[
    test("ksm/works-as-before", works_as_before),
    test("ksm/leaves-merged-pages-alone", leaves_merged_pages_alone),
    test("ksm/its-pages-are-left-alone", its_pages_are_left_alone),
    test("ksm/same-range-with-writes", same_range_with_writes),
    test("ksm/unmergeable-breaks", unmergeable_breaks),
    test("ksm/unmergeable-breaks-zero-pages", unmergeable_breaks_zero),
    test("ksm/run-2-breaks", run_2_breaks),
    test("ksm/prctl-off-breaks", prctl_off_breaks),
    test("ksm/exit-with-both", exit_with_both),
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
    let deadline = Instant::now() + Duration::from_secs(120);
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
    merging(|| beside(1, || map.merge(), |_| for_a_while(write)))?;
    ensure!(
        KSM.number("full_scans")? > scans_before,
        "ksmd did not scan"
    );
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

fn prctl_off_breaks() -> Result<()> {
    const SET_MEMORY_MERGE: i32 = 67;
    let start = Counters::now()?;
    let map = Map::filled(&[5, 5, 5, 6, 7, 7])?;
    // SAFETY: takes numbers only.
    let set = |on: i32| check(unsafe { libc::prctl(SET_MEMORY_MERGE, on, 0, 0, 0) });
    set(1)?;
    breaks(&start, &map, || Ok(set(0).map(drop)?))?;
    map.expect_all(|page| [5, 5, 5, 6, 7, 7][page])
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
