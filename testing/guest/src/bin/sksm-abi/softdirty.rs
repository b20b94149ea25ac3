//! Soft-dirty bits: merging is no write, so it neither sets nor clears one; a later write sets it.

use std::fs;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::skip::skip;

use crate::expect::{one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test("soft-dirty/kept-by-merging", kept_by_merging),
    test("soft-dirty/cleared-of-merged", cleared_of_merged),
    test("soft-dirty/moved", moved),
];

/// Clears the bits of this process.
fn clear() -> Result<()> {
    fs::write("/proc/self/clear_refs", "4").context("cannot clear soft-dirty bits")
}

fn bits(map: &Map) -> Result<Vec<bool>> {
    let entries = Pagemap::own()?.entries(map.addr(), map.pages())?;
    Ok(entries.iter().map(|entry| entry.soft_dirty()).collect())
}

fn expect(map: &Map, wanted: &[usize], when: &str) -> Result<()> {
    let bits = bits(map)?;
    let found: Vec<usize> = (0..map.pages()).filter(|page| bits[*page]).collect();
    ensure!(found == wanted, "{when}: pages {found:?}, not {wanted:?}");
    Ok(())
}

/// A mapping that neighbours cannot join: with them it would take over bits that are the whole mapping's.
fn alone(contents: &[u64]) -> Result<Map> {
    let room = Map::anon(contents.len() + 2)?;
    room.protect(libc::PROT_NONE)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let map = Map::at(
        room.page(1),
        contents.len(),
        sksm_guest::memory::map::WRITE,
        flags,
        None,
        0,
    )?;
    // The rest of the room stays: it is what keeps others away.
    std::mem::forget(room);
    map.no_huge();
    map.fill_all(|page| contents[page]);
    Ok(map)
}

/// Pages none of which is soft-dirty. Skips the test where there are no such bits.
fn clean(contents: &[u64]) -> Result<Map> {
    let map = alone(contents)?;
    if !bits(&map)?.contains(&true) {
        return skip("no soft-dirty bits in this kernel (CONFIG_MEM_SOFT_DIRTY)");
    }
    clear()?;
    expect(&map, &[], "cleared")?;
    Ok(map)
}

fn kept_by_merging() -> Result<()> {
    let map = clean(&[5, 5, 5, 6, 0, 0, 7])?;
    // The same bytes again: pages 1 and 4 are written, and equal to others still.
    map.fill(1, 5);
    map.fill(4, 0);
    expect(&map, &[1, 4], "written")?;
    map.merge()?;
    expect(&map, &[1, 4], "merged")?;
    one_page(&map.pfns()?[..3])?;
    zero_pages(&map.part(4..6))?;
    // A copy, the zero page, and pages taken back.
    for page in [0, 5, 3] {
        map.put(page, 7, 9);
    }
    expect(&map, &[0, 1, 3, 4, 5], "written after merging")?;
    map.merge()?;
    expect(&map, &[0, 1, 3, 4, 5], "merged again")?;
    for (page, id) in [5, 5, 5, 6, 0, 0, 7].into_iter().enumerate() {
        map.expect_after(page, 8, id)?;
    }
    Ok(())
}

fn cleared_of_merged() -> Result<()> {
    let map = clean(&[5, 5, 5, 0, 0, 6])?;
    map.fill_all(|page| [5, 5, 5, 0, 0, 6][page]);
    map.merge()?;
    expect(&map, &[0, 1, 2, 3, 4, 5], "merged")?;
    clear()?;
    expect(&map, &[], "cleared")?;
    one_page(&map.pfns()?[..3]).context("clearing parted them")?;
    map.merge()?;
    expect(&map, &[], "merged again")?;
    for page in [2, 4, 5] {
        map.put(page, 0, 1);
    }
    expect(&map, &[2, 4, 5], "written")?;
    map.expect(0, 5)?;
    map.expect(3, 0)
}

/// What moves counts as written, whether merged or not; a merge afterwards changes nothing.
fn moved() -> Result<()> {
    let map = clean(&[5, 5, 6, 7])?;
    map.merge_pages(0..3)?;
    expect(&map, &[], "merged")?;
    let map = map.moved()?;
    expect(&map, &[0, 1, 2, 3], "moved")?;
    one_page(&map.pfns()?[..2])?;
    map.merge()?;
    expect(&map, &[0, 1, 2, 3], "merged again")
}
