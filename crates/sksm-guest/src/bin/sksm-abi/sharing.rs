//! Copy-on-write of merged pages, the sole owner's page, and bounded sharing.

use anyhow::{Result, ensure};
use sksm_guest::memory::Map;
use sksm_guest::pagemap;
use sksm_guest::report::{Test, test};
use sksm_guest::sysfs::{Counters, SKSM};

use crate::expect::{apart, copies, merged, one_page};

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
