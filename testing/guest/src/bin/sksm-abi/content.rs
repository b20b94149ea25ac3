//! Which pages merge with which, and in which amounts.

use anyhow::{Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::{Counters, KSM, SKSM, zero_pages_here};
use sksm_guest::memory::map::Map;
use sksm_guest::page::{PAGE, TABLE, WORDS};

use crate::expect::{apart, copies, merged, one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test("content/one-bit-differs", one_bit_differs),
    test("content/zero-pages", zero),
    test("content/zero-pages-of-ksm", zero_counts_as_ksm),
    test("content/64-MiB-equal", much_equal),
    test("content/64-MiB-different", much_different),
    test("content/64-MiB-every-other-zero", much_alternating),
    test("content/across-page-tables", across_page_tables),
    test("content/separate-calls", separate_calls),
    test("content/twin-written-and-freed", twin_written_and_freed),
];

const MUCH: usize = (64 << 20) / PAGE;

/// Pages that differ in one bit, at any place, stay apart.
fn one_bit_differs() -> Result<()> {
    let map = Map::filled(&[9; 65])?;
    for page in 0..64 {
        let word = if page == 0 { 0 } else { page * 8 + 7 };
        map.put(page, word, map.get(page, word) ^ 1 << page);
    }
    let before = map.bytes();
    map.merge()?;
    apart(&map.pfns()?)?;
    ensure!(map.bytes() == before, "contents changed");
    // Almost zero is not zero.
    let zero = Map::filled(&[0; 2])?;
    zero.put(0, WORDS - 1, 1 << 63);
    zero.merge()?;
    apart(&zero.pfns()?)?;
    ensure!(zero.get(0, WORDS - 1) == 1 << 63, "a bit was lost");
    Ok(())
}

fn zero() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[0; 5])?;
    apart(&map.pfns()?)?;
    map.merge()?;
    zero_pages(&map)?;
    ensure!(start.change()?.pages_zero == 5, "{:?}", start.change()?);
    map.put(0, 0, 1);
    map.put(1, 511, 0);
    ensure!(start.change()?.pages_zero == 3, "{:?}", start.change()?);
    ensure!(map.get(0, 0) == 1, "a write was lost");
    (1..5).try_for_each(|page| map.expect(page, 0))?;
    map.merge()?;
    ensure!(start.change()?.pages_zero == 4, "{:?}", start.change()?);
    drop(map);
    ensure!(start.change()?.pages_zero == 0, "{:?}", start.change()?);
    Ok(())
}

/// To the rest of the system they are zero pages that KSM placed.
fn zero_counts_as_ksm() -> Result<()> {
    let (all, own) = (KSM.number("ksm_zero_pages")?, zero_pages_here()?);
    let map = Map::filled(&[0; 5])?;
    map.merge()?;
    ensure!(KSM.number("ksm_zero_pages")? - all == 5, "system-wide");
    ensure!(zero_pages_here()? - own == 5, "of this process");
    map.fill(0, 1);
    ensure!(
        zero_pages_here()? - own == 4,
        "of this process, after a write"
    );
    Ok(())
}

fn much(id: impl Fn(usize) -> u64 + Copy, zeros: usize, distinct: usize) -> Result<()> {
    let start = Counters::now()?;
    let map = Map::anon(MUCH)?;
    map.no_huge();
    map.fill_all(id);
    map.merge()?;
    let found = copies(&map.pfns()?);
    ensure!(found == distinct, "{found} copies instead of {distinct}");
    let change = start.change()?;
    ensure!(change.pages_zero == zeros as i64, "{change:?}");
    map.expect_all(id)?;
    for page in (0..MUCH).step_by(3) {
        map.put(page, 100, 42);
    }
    for page in 0..MUCH {
        let id = id(page);
        let value = sksm_guest::memory::content::content(id, 100);
        let right = if page % 3 == 0 { 42 } else { value };
        ensure!(map.get(page, 100) == right, "page {page} after writes");
        map.expect_after(page, 101, id)?;
    }
    Ok(())
}

fn much_equal() -> Result<()> {
    let most = SKSM.number("max_page_sharing")? as usize;
    much(|_| 1, 0, MUCH.div_ceil(most))
}

fn much_different() -> Result<()> {
    much(|page| page as u64 + 1, 0, MUCH)
}

fn much_alternating() -> Result<()> {
    let zero = |page: usize| page % 2 == 0;
    let id = move |page| if zero(page) { 0 } else { page as u64 };
    // One zero page besides the different ones.
    much(id, MUCH / 2, MUCH / 2 + 1)
}

fn across_page_tables() -> Result<()> {
    for pages in [2, 6, 1030] {
        let map = Map::aligned(pages, TABLE, TABLE - PAGE)?;
        map.fill_all(|page| 1 + page as u64 % 2);
        map.merge()?;
        let pfns = map.pfns()?;
        let most = SKSM.number("max_page_sharing")? as usize;
        let wanted = 2 * (pages / 2).div_ceil(most);
        ensure!(
            copies(&pfns) == wanted,
            "{pages} pages on {}",
            copies(&pfns)
        );
        map.expect_all(|page| 1 + page as u64 % 2)?;
    }
    Ok(())
}

/// Pages merge with what earlier calls published, one page a call.
fn separate_calls() -> Result<()> {
    let map = Map::filled(&[8; 16])?;
    for page in (0..16).rev() {
        map.merge_pages(page..page + 1)?;
        one_page(&map.pfns()?[page..])?;
    }
    map.expect_all(|_| 8)
}

/// A published page that was written or unmapped is no twin any more.
fn twin_written_and_freed() -> Result<()> {
    for round in 0..50 {
        let id = 1000 + round;
        let map = merged(1, id)?;
        if round % 2 == 0 {
            map.put(0, 0, 1);
        } else {
            map.advise(libc::MADV_DONTNEED)?;
        }
        let other = merged(2, id)?;
        other.expect_all(|_| id)?;
        // What the page has become is no twin either.
        let (value, rest) = if round % 2 == 0 { (1, id) } else { (0, 0) };
        ensure!(map.get(0, 0) == value, "the page itself");
        map.expect_after(0, 1, rest)?;
        map.merge()?;
        one_page(&other.pfns()?)?;
        apart(&[map.pfn(0)?, other.pfn(0)?])?;
    }
    Ok(())
}
