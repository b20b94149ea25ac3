//! Transparent huge pages: split, then merged.

use anyhow::{Result, ensure};
use sksm_guest::memory::Map;
use sksm_guest::pagemap::Flags;
use sksm_guest::process::Child;
use sksm_guest::report::{Test, skip, test};
use sksm_guest::sysfs::SKSM;

use crate::expect::{apart, copies, one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test("huge/equal-pages", equal_pages),
    test("huge/different-pages", different_pages),
    test("huge/zero", zero),
    test("huge/part-of-one", part_of_one),
    test("huge/shared-by-fork", shared_by_fork),
    test("huge/collapse-leaves-merged-pages", collapse),
];

const HUGE: usize = 512;

/// Memory in huge pages, with these contents.
fn huge(tables: usize, id: impl Fn(usize) -> u64) -> Result<Map> {
    match Map::huge(tables * HUGE, id)? {
        Some(map) => Ok(map),
        None => skip("no transparent huge pages in this kernel (CONFIG_TRANSPARENT_HUGEPAGE)"),
    }
}

fn no_huge_left(map: &Map) -> Result<()> {
    for pfn in map.pfns()? {
        ensure!(
            !Flags::of(pfn)?.huge(),
            "page {pfn:#x} is part of a huge page"
        );
    }
    Ok(())
}

fn equal_pages() -> Result<()> {
    let map = huge(2, |_| 5)?;
    map.merge()?;
    let most = SKSM.number("max_page_sharing")? as usize;
    let found = copies(&map.pfns()?);
    ensure!(found == (2 * HUGE).div_ceil(most), "{found} copies");
    no_huge_left(&map)?;
    map.expect_all(|_| 5)?;
    map.fill(700, 6);
    map.expect_all(|page| if page == 700 { 6 } else { 5 })
}

fn different_pages() -> Result<()> {
    let id = |page: usize| 1 + page as u64 % HUGE as u64;
    let map = huge(2, id)?;
    map.merge()?;
    let pfns = map.pfns()?;
    ensure!(pfns[..HUGE] == pfns[HUGE..], "equal pages apart");
    apart(&pfns[..HUGE])?;
    no_huge_left(&map)?;
    map.expect_all(id)
}

fn zero() -> Result<()> {
    let map = huge(1, |_| 0)?;
    map.merge()?;
    zero_pages(&map)?;
    map.fill(3, 1);
    map.expect_all(|page| u64::from(page == 3))
}

fn part_of_one() -> Result<()> {
    let map = huge(1, |page| page as u64 / 2)?;
    map.merge_pages(100..104)?;
    let pfns = map.pfns()?;
    one_page(&pfns[100..102])?;
    one_page(&pfns[102..104])?;
    map.expect_all(|page| page as u64 / 2)?;
    map.fill_all(|_| 9);
    map.expect_all(|_| 9)
}

fn shared_by_fork() -> Result<()> {
    let right = |page: usize| 1 + page as u64 % 8;
    let map = huge(1, right)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.merge()?;
        map.expect_all(right)?;
        ensure!(
            copies(&map.pfns()?) <= 16,
            "{} copies",
            copies(&map.pfns()?)
        );
        map.fill_all(|_| 20);
        parent.meet()?;
        map.expect_all(|_| 20)
    })?;
    child.pause()?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 8, "{} copies", copies(&map.pfns()?));
    child.go()?;
    child.pause()?;
    map.expect_all(right)?;
    map.fill(0, 30);
    child.go()?;
    child.join()?;
    map.expect_all(|page| if page == 0 { 30 } else { right(page) })
}

/// Asking for a huge page where pages are merged changes no content; the other sharers keep theirs.
fn collapse() -> Result<()> {
    let map = huge(1, |_| 5)?;
    let other = Map::filled(&[5; 4])?;
    map.merge()?;
    other.merge()?;
    let before = map.pfns()?;
    if map.advise(libc::MADV_COLLAPSE).is_err() {
        ensure!(map.pfns()? == before, "refused, and changed");
    }
    map.expect_all(|_| 5)?;
    map.fill_all(|page| page as u64);
    map.expect_all(|page| page as u64)?;
    other.expect_all(|_| 5)
}
