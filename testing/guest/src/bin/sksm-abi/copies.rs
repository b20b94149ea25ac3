//! Many copies of one content: what a page costs does not grow with their number.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::slow::checks_everything;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, Gate};
use sksm_guest::page::PAGE;

use crate::expect::{apart, copies, one_page};

pub const TESTS: &[Test] = &[
    test("copies/by-fork", by_fork),
    test("copies/bounded-lookup", bounded_lookup),
    test("copies/eight-are-looked-at", eight_are_looked_at),
    test("copies/next-older-takes-the-place", next_older),
];

const ID: u64 = 7;
/// Pages that are timed together: of a number of such pieces, the quickest is what one costs that nobody disturbs.
const PIECE: usize = 64;

/// How often the last quarter of the pages may cost what the first one does. A list that grows with each page makes it fifty
/// times as much, and other work on the machine twice.
const BOUND: u32 = 8;

/// Times `work` on each piece; of each quarter of the pieces, the quickest.
fn quarters(pages: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<[Duration; 4]> {
    let mut quickest = [Duration::MAX; 4];
    for (number, quickest) in quickest.iter_mut().enumerate() {
        for piece in (number * pages / 4..(number + 1) * pages / 4).step_by(PIECE) {
            let start = Instant::now();
            work(piece)?;
            *quickest = start.elapsed().min(*quickest);
        }
    }
    Ok(quickest)
}

fn flat(times: [Duration; 4], what: &str) -> Result<()> {
    let each = times.map(|time| time / PIECE as u32);
    eprintln!("{what}: {each:?} a page, by quarters");
    let (least, most) = (times.iter().min(), times.iter().max());
    let (least, most) = (least.context("four")?, most.context("four")?);
    // Where everything is checked, that is most of what a page costs.
    ensure!(
        checks_everything()? || *most < *least * BOUND,
        "{what}: {each:?} a page, by quarters"
    );
    Ok(())
}

fn merges(map: &Map, when: &str) -> Result<()> {
    let merge = |first| map.merge_pages(first..first + PIECE);
    flat(quarters(map.pages(), merge)?, when)
}

fn unmaps(map: Map) -> Result<()> {
    let unmap = |first| Ok(map.unmap_pages(first..first + PIECE)?);
    let times = quarters(map.pages(), unmap)?;
    std::mem::forget(map);
    flat(times, "unmapped")
}

/// Pages that fork has mapped as often as a merged page may be can serve nobody: no copy of the content comes of them.
fn by_fork() -> Result<()> {
    // Where everything is checked, a fork takes long.
    let (pages, children) = match checks_everything()? {
        true => (2048, 15),
        false => (16384, 255),
    };
    SKSM.write("max_page_sharing", children + 1)?;
    let map = Map::anon(pages)?;
    map.no_huge();
    map.fill_all(|_| ID);
    let gate = Gate::closed()?;
    let children = (0..children)
        .map(|_| Child::spawn(|_| gate.wait()))
        .collect::<Result<Vec<_>>>()?;
    let start = Counters::now()?;
    merges(&map, "merged, mapped by all")?;
    let change = start.change()?;
    ensure!(
        change.pages_published == 0,
        "published what can serve nobody: {change:?}"
    );
    ensure!(
        change.pages_busy == pages as i64,
        "pages with too many mappings count as busy: {change:?}"
    );
    // Who has the same content is not slower for it.
    let bystander = Map::filled(&[ID; 4 * PIECE])?;
    bystander.merge()?;
    ensure!(
        copies(&bystander.pfns()?) <= 4 * PIECE / 2,
        "a bystander's pages do not merge"
    );
    gate.open()?;
    children.into_iter().try_for_each(Child::join)?;
    map.expect(pages - 1, ID)?;
    unmaps(map)?;
    bystander.expect_all(|_| ID)
}

/// With two mappings to a page there is a copy for every second page. All but the youngest are full, and nobody looks at them.
fn bounded_lookup() -> Result<()> {
    let pages = if checks_everything()? { 2048 } else { 16384 };
    SKSM.write("max_page_sharing", 2)?;
    let map = Map::anon(pages)?;
    map.no_huge();
    map.fill_all(|_| ID);
    merges(&map, "merged, two to a copy")?;
    let found = copies(&map.pfns()?);
    ensure!(
        found <= pages * 3 / 4,
        "{found} copies of one content in {pages} pages"
    );
    map.expect_all(|_| ID)?;
    unmaps(map)?;
    // Gone altogether, so that the next is the first.
    let again = Map::filled(&[ID; 2])?;
    again.merge()?;
    ensure!(copies(&again.pfns()?) == 1, "{} bytes", 2 * PAGE);
    Ok(())
}

/// As many copies of one content, of two users each, the oldest first.
fn full(copies: usize) -> Result<Map> {
    SKSM.write("max_page_sharing", 2)?;
    let map = Map::filled(&vec![ID; 2 * copies])?;
    map.merge()?;
    let pfns = map.pfns()?;
    pfns.chunks(2).try_for_each(one_page)?;
    let firsts: Vec<_> = pfns.iter().copied().step_by(2).collect();
    apart(&firsts)?;
    Ok(map)
}

/// A page of the same content, merged just now, and whether it became a copy itself.
fn another() -> Result<(Map, bool)> {
    let start = Counters::now()?;
    let map = Map::filled(&[ID])?;
    map.merge()?;
    let change = start.change()?;
    let [published, merged] = [change.pages_published, change.pages_merged];
    ensure!(published + merged == 1, "neither, or both: {change:?}");
    Ok((map, published == 1))
}

/// The eighth newest copy is found if it has room, the ninth is not: there may be any number of them.
fn eight_are_looked_at() -> Result<()> {
    for (copies, found) in [(2, true), (8, true), (9, false), (30, false)] {
        let map = full(copies)?;
        // The oldest has room.
        map.unmap_pages(1..2)?;
        let (page, published) = another()?;
        let (oldest, page_pfn) = (map.pfn(0)?, page.pfn(0)?);
        ensure!(
            (oldest == page_pfn, published) == (found, !found),
            "the oldest of {copies} copies: page {page_pfn:#x}, published {published}"
        );
        page.expect(0, ID)?;
        // The newest, whose only user that is, comes first.
        let (second, published) = another()?;
        ensure!(published == found, "a second page with {copies} copies");
        ensure!(
            found || second.pfn(0)? == page_pfn,
            "the newest copy is not found"
        );
        map.expect(0, ID)?;
    }
    Ok(())
}

/// Whichever copy goes, the others are found.
fn next_older() -> Result<()> {
    let map = full(4)?;
    let joins = |copy: usize| -> Result<Map> {
        let (page, published) = another()?;
        ensure!(!published, "copy {copy} has room and is not found");
        one_page(&[page.pfn(0)?, map.pfn(2 * copy)?])?;
        Ok(page)
    };
    // One in the middle goes; the oldest has room.
    map.unmap_pages(4..6)?;
    map.unmap_pages(1..2)?;
    let of_oldest = joins(0)?;
    // The newest goes; the next one has room.
    map.unmap_pages(6..8)?;
    map.unmap_pages(3..4)?;
    let of_newest = joins(1)?;
    // That one goes too.
    drop(of_newest);
    map.unmap_pages(2..3)?;
    drop(of_oldest);
    joins(0)?.expect(0, ID)?;
    map.expect(0, ID)
}
