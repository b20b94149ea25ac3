//! Copy-on-write of merged pages, the sole owner's page, and bounded sharing.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::content::content;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{self, Flags};
use sksm_guest::memory::process::Child;

use crate::expect::{apart, copies, merged, one_page};
use crate::writers::for_a_while_until;

pub const TESTS: &[Test] = &[
    test("sharing/write-is-cow", write_is_cow),
    test(
        "sharing/sole-owner-writes-in-place",
        sole_owner_writes_in_place,
    ),
    test(
        "sharing/last-sharer-writes-in-place",
        last_sharer_writes_in_place,
    ),
    test("sharing/withdrawals-are-counted", withdrawals_are_counted),
    test(
        "sharing/withdraw-while-others-merge",
        withdraw_while_others_merge,
    ),
    test("sharing/limit", limit),
    test("sharing/limit-raised", limit_raised),
];

fn write_is_cow() -> Result<()> {
    let map = merged(3, 4)?;
    let page = map.pfn(0)?;
    map.put(1, 17, 99);
    let pfns = map.pfns()?;
    ensure!(pfns[0] == page && pfns[2] == page, "others' page changed");
    ensure!(pfns[1] != page, "written without a copy");
    ensure!(map.get(1, 17) == 99, "the write was lost");
    map.expect(0, 4)?;
    map.expect(2, 4)?;
    map.expect_after(1, 18, 4)?;
    map.put(1, 17, map.get(0, 17));
    map.merge()?;
    one_page(&map.pfns()?)
}

/// A published page without a twin is taken back without a copy.
fn sole_owner_writes_in_place() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::anon(64)?;
    map.no_huge();
    map.fill_all(|page| page as u64 + 1);
    let original = map.pfns()?;
    map.merge()?;
    ensure!(map.pfns()? == original, "published by a copy");
    let published = start.change()?.pages_unshared;
    ensure!(published == 64, "64 pages: {:?}", start.change()?);
    (0..64).for_each(|page| map.put(page, 3, 3));
    ensure!(map.pfns()? == original, "taken back by a copy");
    let published = start.change()?.pages_unshared;
    ensure!(published == 0, "{published} are still published");
    (0..64).try_for_each(|page| map.expect_after(page, 4, page as u64 + 1))
}

fn last_sharer_writes_in_place() -> Result<()> {
    let map = merged(3, 4)?;
    let page = map.pfn(0)?;
    map.put(0, 0, 1);
    map.advise_pages(2..3, libc::MADV_DONTNEED)?;
    map.put(1, 0, 2);
    ensure!(map.pfn(1)? == page, "the last sharer's page was copied");
    ensure!(map.get(0, 0) == 1 && map.get(1, 0) == 2, "writes mixed up");
    map.expect_after(0, 1, 4)?;
    map.expect_after(1, 1, 4)
}

/// A published page that never found a twin, a merged page's last sharer, a child's last sharer: each is a withdrawal; a copy is
/// none, and neither is the second write.
fn withdrawals_are_counted() -> Result<()> {
    let map = Map::filled(&[1, 2, 3, 3])?;
    map.merge()?;
    let start = Counters::now()?;
    let withdrawn = |wanted: i64, what: &str| -> Result<()> {
        let change = start.change()?;
        ensure!(change.pages_withdrawn == wanted, "{what}: {change:?}");
        ensure!(change.pages_merged == 0, "{what}: {change:?}");
        Ok(())
    };
    let writes = |page: usize, in_place: bool| -> Result<()> {
        let before = map.pfn(page)?;
        map.put(page, 0, page as u64);
        map.put(page, 1, page as u64);
        let kept = map.pfn(page)? == before;
        ensure!(kept == in_place, "page {page} written in place: {kept}");
        Ok(())
    };
    writes(0, true)?;
    withdrawn(1, "without a twin")?;
    writes(2, false)?;
    withdrawn(1, "a copy")?;
    writes(3, true)?;
    withdrawn(2, "the last sharer")?;
    // Two processes map the page without a twin; when one has gone, the other is its only user.
    Child::spawn(|_| writes(1, false))?.join()?;
    withdrawn(2, "a child's copy")?;
    writes(1, true)?;
    withdrawn(3, "the child has gone")?;
    map.merge()?;
    let published = start.change()?.pages_published;
    ensure!(published == 4, "{published} pages published again");
    (0..4).try_for_each(|page| map.expect_after(page, 2, [1, 2, 3, 3][page]))
}

/// The pages of several processes and the engine's counters agree: `start` is before any of them merged.
fn counters_agree(start: &Counters, mappings: &[u64]) -> Result<()> {
    let mut merged = HashMap::new();
    for pfn in mappings {
        if Flags::of(*pfn)?.ksm() {
            *merged.entry(pfn).or_insert(0) += 1;
        }
    }
    let wanted = (
        merged.values().filter(|mappings| **mappings > 1).count() as i64,
        merged.values().map(|mappings| mappings - 1).sum::<i64>(),
        merged.values().filter(|mappings| **mappings == 1).count() as i64,
    );
    let change = start.change()?;
    let found = (
        change.pages_shared,
        change.pages_sharing,
        change.pages_unshared,
    );
    ensure!(found == wanted, "counted {found:?}, mapped {wanted:?}");
    Ok(())
}

/// One process publishes pages and takes them back by writing, while another one's merge is about to find them.
fn withdraw_while_others_merge() -> Result<()> {
    const PAGES: usize = 16;
    const MANY: i64 = 100;
    let id = |page: usize| page as u64 + 1;
    let start = Counters::now()?;
    let map = Map::filled(&[0; PAGES])?;
    // Its pages are new each time, so that each of its merges looks for the writer's.
    let finds = |_: u64| -> Result<()> {
        map.advise(libc::MADV_DONTNEED)?;
        map.fill_all(id);
        map.merge()?;
        map.expect_all(id)
    };
    let writes = |round: u64| -> Result<()> {
        map.merge()?;
        for page in 0..PAGES {
            map.put(page, 0, round);
            map.put(page, 511, round);
            ensure!(map.get(page, 0) == round, "page {page}: a write is lost");
            map.put(page, 0, content(id(page), 0));
            map.put(page, 511, content(id(page), 511));
        }
        map.expect_all(id)
    };
    let other = |work: &dyn Fn(u64) -> Result<()>| {
        let child = Child::spawn(|parent| {
            map.fill_all(id);
            parent.meet()?;
            let enough =
                |change: &Counters| change.pages_merged > MANY && change.pages_withdrawn > MANY;
            let seen = || start.change().is_ok_and(|change| enough(&change));
            for_a_while_until(seen, work)?;
            map.merge()?;
            parent.meet()?;
            map.expect_all(id)
        })?;
        child.pause()?;
        anyhow::Ok(child)
    };
    let children = [other(&finds)?, other(&writes)?];
    children.iter().try_for_each(|child| child.go())?;
    children.iter().try_for_each(|child| child.pause())?;
    let pfns = |child: &Child| child.pagemap()?.pfns(map.addr(), PAGES);
    let (one, other) = (pfns(&children[0])?, pfns(&children[1])?);
    ensure!(one == other, "the last merge found nothing");
    counters_agree(&start, &[one, other].concat())?;
    let change = start.change()?;
    ensure!(
        change.pages_merged > MANY,
        "the one has found little: {change:?}"
    );
    ensure!(
        change.pages_withdrawn > MANY,
        "the other has taken back little: {change:?}"
    );
    // Each published page was taken back, freed, or is there still.
    let there = change.pages_shared + change.pages_unshared;
    ensure!(
        change.pages_published >= change.pages_withdrawn + there,
        "{change:?}"
    );
    for child in children {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

fn within_limit(pages: usize, most: usize) -> Result<()> {
    SKSM.write("max_page_sharing", most)?;
    let map = Map::filled(&vec![4; pages])?;
    map.merge()?;
    let pfns = map.pfns()?;
    let (found, wanted) = (copies(&pfns), pages.div_ceil(most));
    ensure!(
        found == wanted,
        "{pages} pages, at most {most} sharing: {found} copies"
    );
    for pfn in pfns {
        let mappings = pagemap::map_count(pfn)?;
        ensure!(mappings <= most as u64, "{mappings} mappings of one page");
    }
    map.expect_all(|_| 4)
}

fn limit() -> Result<()> {
    [(10, 4), (12, 4), (13, 4), (600, 256), (3, 2)]
        .into_iter()
        .try_for_each(|(pages, most)| within_limit(pages, most))
}

/// Raising the limit lets later pages join, also the pages that were merged under the lower one keep working.
fn limit_raised() -> Result<()> {
    SKSM.write("max_page_sharing", 2)?;
    let map = Map::filled(&[4; 6])?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 3, "limit of 2");
    SKSM.write("max_page_sharing", 1000)?;
    let more = Map::filled(&[4; 900])?;
    more.merge()?;
    one_page(&more.pfns()?)?;
    SKSM.write("max_page_sharing", 2)?;
    (0..900).for_each(|page| more.fill(page, page as u64 + 10));
    apart(&more.pfns()?)?;
    more.expect_all(|page| page as u64 + 10)?;
    map.expect_all(|_| 4)
}
