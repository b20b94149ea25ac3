//! Transparent huge pages: split, then merged.

use std::fs;
use std::io::Read;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::{Counters, SKSM, zero_pages_here};
use sksm_guest::memory::map::{Map, READ, WRITE};
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::{Child, pipe};
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::skip::skip;

use crate::expect::{apart, copies, one_page, zero_pages};
use crate::pins::splice;

pub const TESTS: &[Test] = &[
    test("huge/equal-pages", equal_pages),
    test("huge/different-pages", different_pages),
    test("huge/zero", zero),
    test("huge/zeros-are-counted", zeros_are_counted),
    test("huge/part-of-one", part_of_one),
    test("huge/shared-by-fork", shared_by_fork),
    test("huge/part-of-one-mapped-by-pages", mapped_by_pages),
    test("huge/middle-sized", middle_sized),
    test("huge/part-of-middle-sized", part_of_middle_sized),
    test("huge/middle-sized-shared-by-fork", middle_sized_shared),
    test("huge/middle-sized-in-use", middle_sized_in_use),
    test("huge/khugepaged-leaves-merged-pages", khugepaged),
    test(
        "huge/khugepaged-leaves-merged-zeros",
        khugepaged_leaves_zeros,
    ),
    test("huge/collapse-refused-of-merged-pages", collapse_refused),
    test("huge/collapse-copies-merged-pages", collapse),
];

const HUGE: usize = 512;
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";
/// Pages of 64 KiB.
const MIDDLE: usize = 16;
const MIDDLE_SETTING: &str = "hugepages-64kB/enabled";

/// Memory in huge pages, with these contents.
pub fn huge(tables: usize, id: impl Fn(usize) -> u64) -> Result<Map> {
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

/// Zeros that are found when a huge page is split count as all others do, here and in all, until they are written.
fn zeros_are_counted() -> Result<()> {
    for every in [1, 3] {
        let id = |page: usize| {
            if page % every == 0 {
                0
            } else {
                1 + page as u64
            }
        };
        let map = huge(1, id)?;
        let zeros = HUGE.div_ceil(every) as i64;
        let (start, own) = (Counters::now()?, zero_pages_here()?);
        map.merge()?;
        let change = start.change()?;
        let found = [
            change.pages_zero,
            change.pages_merged,
            change.pages_scanned,
            zero_pages_here()? - own,
        ];
        ensure!(
            found == [zeros, zeros, HUGE as i64, zeros],
            "{zeros} zeros of {HUGE} pages; zero, merged, scanned, of this process: {found:?}"
        );
        for page in (0..HUGE).step_by(every) {
            ensure!(Flags::of(map.pfn(page)?)?.zero_page(), "page {page}");
        }
        map.expect_all(id)?;
        map.fill(0, 1);
        ensure!(start.change()?.pages_zero == zeros - 1, "one written");
        drop(map);
        let left = (start.change()?.pages_zero, zero_pages_here()? - own);
        ensure!(left == (0, 0), "unmapped: {left:?}");
    }
    Ok(())
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
    let id = |page: usize| 1 + page as u64 % 8;
    merged_on_both_sides(&huge(1, id)?, id, 0..=16)
}

/// Parent and child merge memory of 8 contents that fork shares, first the parent, and both write to it afterwards. `in_child`: how many
/// copies the child may be left with.
fn merged_on_both_sides(
    map: &Map,
    id: impl Fn(usize) -> u64,
    in_child: RangeInclusive<usize>,
) -> Result<()> {
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.merge()?;
        map.expect_all(&id)?;
        let copies = copies(&map.pfns()?);
        ensure!(in_child.contains(&copies), "{copies} copies in the child");
        map.fill_all(|_| 20);
        parent.meet()?;
        map.expect_all(|_| 20)
    })?;
    child.pause()?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 8, "{} copies", copies(&map.pfns()?));
    child.go()?;
    child.pause()?;
    map.expect_all(&id)?;
    map.fill(0, 30);
    child.go()?;
    child.join()?;
    map.expect_all(|page| if page == 0 { 30 } else { id(page) })
}

/// A huge page that a page table maps, page by page, as it was split between two mappings.
fn mapped_by_pages() -> Result<()> {
    let id = |page: usize| 1 + page as u64 / 2;
    let map = huge(1, id)?;
    map.protect_pages(100..101, READ)?;
    ensure!(Flags::of(map.pfn(0)?)?.huge(), "the huge page is split");
    map.merge_pages(0..200)?;
    let pfns = map.pfns()?;
    ensure!(copies(&pfns[..200]) == 100, "not merged");
    apart(&pfns[200..])?;
    map.protect(WRITE)?;
    map.expect_all(id)?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == HUGE / 2, "not merged");
    no_huge_left(&map)?;
    map.fill_all(|_| 9);
    map.expect_all(|_| 9)
}

/// Memory in pages of 64 KiB, which a page table maps.
fn middle(pages: usize, id: impl Fn(usize) -> u64) -> Result<Map> {
    needed()?;
    set(MIDDLE_SETTING, "madvise")?;
    // Too little for a huge page.
    assert!(pages < HUGE, "less than a page table");
    let map = Map::aligned(pages, TABLE, 0)?;
    map.advise(libc::MADV_HUGEPAGE).context("MADV_HUGEPAGE")?;
    map.fill_all(id);
    for (page, pfn) in map.pfns()?.into_iter().enumerate() {
        let flags = Flags::of(pfn)?;
        ensure!(flags.huge(), "page {page} is a small one: {flags:x?}");
    }
    Ok(map)
}

fn middle_sized() -> Result<()> {
    let id = |page: usize| page as u64 % 100;
    let map = middle(256, id)?;
    map.merge()?;
    let pfns = map.pfns()?;
    ensure!(copies(&pfns) == 100, "{} copies", copies(&pfns));
    no_huge_left(&map)?;
    zero_pages(&map.part(100..101))?;
    map.expect_all(id)?;
    map.fill_all(|page| id(page) + 1);
    map.expect_all(|page| id(page) + 1)
}

fn part_of_middle_sized() -> Result<()> {
    let id = |page: usize| 1 + page as u64 / 2;
    let map = middle(4 * MIDDLE, id)?;
    // From within the second to within the third.
    let part = MIDDLE + 6..2 * MIDDLE + 4;
    map.merge_pages(part.clone())?;
    let pfns = map.pfns()?;
    ensure!(copies(&pfns[part.clone()]) == part.len() / 2, "not merged");
    apart(&pfns[..part.start])?;
    apart(&pfns[part.end..])?;
    for pfn in [&pfns[..MIDDLE], &pfns[3 * MIDDLE..]].concat() {
        ensure!(Flags::of(pfn)?.huge(), "split outside of the range");
    }
    map.expect_all(id)?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 2 * MIDDLE, "not merged");
    map.expect_all(id)
}

fn middle_sized_shared() -> Result<()> {
    let id = |page: usize| 1 + page as u64 % 8;
    merged_on_both_sides(&middle(4 * MIDDLE, id)?, id, 8..=8)
}

/// A large page that somebody holds a part of cannot be split: all of it is left.
fn middle_sized_in_use() -> Result<()> {
    let map = middle(2 * MIDDLE, |_| 5)?;
    let before = map.pfns()?;
    let (mut out, into) = pipe()?;
    splice(&map, 1, &into)?;
    let start = Counters::now()?;
    map.merge()?;
    let after = map.pfns()?;
    ensure!(
        after[..MIDDLE] == before[..MIDDLE],
        "pages that are in use were replaced"
    );
    one_page(&after[MIDDLE..])?;
    let busy = start.change()?.pages_busy;
    ensure!(busy == MIDDLE as i64, "{busy} pages were busy");
    out.read_exact(&mut vec![0; PAGE])?;
    map.merge()?;
    one_page(&map.pfns()?)?;
    map.expect_all(|_| 5)
}

fn needed() -> Result<()> {
    if !fs::exists(SETTINGS)? {
        return skip("no transparent huge pages in this kernel (CONFIG_TRANSPARENT_HUGEPAGE)");
    }
    Ok(())
}

fn set(name: &str, value: &str) -> Result<()> {
    fs::write(format!("{SETTINGS}/{name}"), value).with_context(|| format!("cannot set {name}"))
}

/// Small pages where a huge one might be.
fn small(id: impl Fn(usize) -> u64) -> Result<Map> {
    let map = Map::aligned(HUGE, TABLE, 0)?;
    map.fill_all(id);
    Ok(map)
}

fn is_huge(map: &Map) -> Result<bool> {
    Ok(Flags::of(map.pfn(0)?)?.huge())
}

/// Waits until khugepaged has been all around that often.
fn scans(times: u64) -> Result<()> {
    let done = || -> Result<u64> {
        let text = fs::read_to_string(format!("{SETTINGS}/khugepaged/full_scans"))?;
        Ok(text.trim().parse()?)
    };
    let start = done()?;
    let deadline = deadline();
    while done()? - start < times {
        ensure!(Instant::now() < deadline, "khugepaged does not scan");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Rounds of khugepaged in which it would have found what it finds.
const SCANS: u64 = 3;

/// Lets khugepaged look around often.
fn hurried() -> Result<()> {
    needed()?;
    for (name, value) in [
        ("enabled", "madvise"),
        ("khugepaged/defrag", "1"),
        ("khugepaged/alloc_sleep_millisecs", "10"),
        ("khugepaged/scan_sleep_millisecs", "10"),
    ] {
        set(name, value)?;
    }
    Ok(())
}

/// Waits until khugepaged has made huge pages of all of these.
fn become_huge(maps: &[&Map]) -> Result<()> {
    let deadline = deadline();
    for map in maps {
        while !is_huge(map)? {
            ensure!(Instant::now() < deadline, "khugepaged leaves all as it is");
            scans(1)?;
        }
    }
    Ok(())
}

/// It takes pages that are not there for zeros, and fills in; those that a merge has put the zero page in the place of are not
/// for it, or a merge would have saved nothing for long.
fn khugepaged_leaves_zeros() -> Result<()> {
    hurried()?;
    let id = |page: usize| if page % 2 == 0 { 0 } else { 1 + page as u64 };
    let (ordinary, zeros) = (small(id)?, small(id)?);
    zeros.merge_pages(100..140)?;
    for page in (100..140).step_by(2) {
        ensure!(Flags::of(zeros.pfn(page)?)?.zero_page(), "page {page}");
    }
    // What merged beside them must not be the reason.
    for page in (101..140).step_by(2) {
        zeros.fill(page, id(page));
    }
    for map in [&ordinary, &zeros] {
        map.advise(libc::MADV_HUGEPAGE).context("MADV_HUGEPAGE")?;
    }
    become_huge(&[&ordinary])?;
    scans(SCANS)?;
    for page in (100..140).step_by(2) {
        ensure!(
            Flags::of(zeros.pfn(page)?)?.zero_page(),
            "khugepaged has filled in page {page}"
        );
    }
    zeros.expect_all(id)?;
    (100..140).for_each(|page| zeros.fill(page, id(page)));
    become_huge(&[&zeros])?;
    zeros.expect_all(id)
}

/// It makes a huge page of small ones, but not where a few of them are merged, or published without a twin. Once these are
/// written it does there too.
fn khugepaged() -> Result<()> {
    hurried()?;
    let id = |page: usize| 1 + page as u64;
    let (ordinary, shared, published) = (small(id)?, small(id)?, small(id)?);
    let twin = Map::filled(&[id(100), id(101)])?;
    shared.merge_pages(100..102)?;
    twin.merge()?;
    ensure!(twin.pfns()? == shared.pfns()?[100..102], "not merged");
    // Something else, or it would be the twin's.
    published.fill(100, 5000);
    published.merge_pages(100..101)?;
    let merged = [&shared, &published];
    for map in [&ordinary, &shared, &published] {
        map.advise(libc::MADV_HUGEPAGE).context("MADV_HUGEPAGE")?;
    }
    become_huge(&[&ordinary])?;
    scans(SCANS)?;
    for map in merged {
        ensure!(!is_huge(map)?, "khugepaged has parted merged pages");
    }
    ensure!(
        twin.pfns()? == shared.pfns()?[100..102],
        "pages were parted"
    );
    shared.expect_all(id)?;
    shared.fill(100, id(100));
    shared.fill(101, id(101));
    published.fill(100, id(100));
    become_huge(&[&shared, &published])?;
    [&ordinary, &shared, &published]
        .iter()
        .try_for_each(|map| map.expect_all(id))?;
    twin.expect_all(|page| id(100 + page))
}

/// Where nothing may be written the kernel makes no huge page, whoever asks.
fn collapse_refused() -> Result<()> {
    let map = huge(1, |_| 5)?;
    let other = Map::filled(&[5; 4])?;
    map.merge()?;
    other.merge()?;
    let before = map.pfns()?;
    ensure!(
        map.advise(libc::MADV_COLLAPSE).is_err(),
        "pages that are all read-only collapsed"
    );
    ensure!(map.pfns()? == before, "refused, and changed");
    map.expect_all(|_| 5)?;
    map.fill_all(|page| page as u64);
    map.expect_all(|page| page as u64)?;
    other.expect_all(|_| 5)
}

/// Who asks for a huge page where some pages are merged gets copies of these. The others who share them keep theirs, and what
/// nobody maps any more is gone.
fn collapse() -> Result<()> {
    /// Pages that were written since, pages that another process has too, and pages that have no twin.
    const WRITTEN: usize = 16;
    const SHARED: usize = 400;
    needed()?;
    let id = |page: usize| 1 + page as u64;
    let map = small(id)?;
    let child = Child::spawn(|parent| {
        // Its own, which find the parent's.
        map.fill_all(id);
        map.merge_pages(0..SHARED)?;
        parent.meet()?;
        map.expect_all(id)
    })?;
    child.pause()?;
    map.merge()?;
    let theirs = child.pagemap()?.pfns(map.addr(), SHARED)?;
    ensure!(map.pfns()?[..SHARED] == theirs, "not merged");
    (0..WRITTEN).for_each(|page| map.fill(page, 9000 + page as u64));
    let before = Counters::now()?;
    map.advise(libc::MADV_HUGEPAGE).context("MADV_HUGEPAGE")?;
    map.advise(libc::MADV_COLLAPSE).context("MADV_COLLAPSE")?;
    ensure!(is_huge(&map)?, "no huge page");
    let right = |page: usize| match page {
        0..WRITTEN => 9000 + page as u64,
        _ => id(page),
    };
    map.expect_all(right)?;
    ensure!(
        child.pagemap()?.pfns(map.addr(), SHARED)? == theirs,
        "another process's pages were exchanged"
    );
    // Those that both had are the other's alone now, and those that only this one had are gone.
    let change = before.change()?;
    let (both, alone) = ((SHARED - WRITTEN) as i64, (HUGE - SHARED) as i64);
    let found = (
        change.pages_shared,
        change.pages_sharing,
        change.pages_unshared,
    );
    ensure!(found == (-both, -both, both - alone), "{change:?}");
    map.fill_all(|page| 7000 + page as u64);
    map.expect_all(|page| 7000 + page as u64)?;
    child.go()?;
    child.join()
}
