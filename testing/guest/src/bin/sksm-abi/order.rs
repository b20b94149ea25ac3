//! In which order a call merges its pages: it begins at another page table on each CPU, and leaves none out.

use std::thread::available_parallelism;

use anyhow::{Result, ensure};
use libc::ENOMEM;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::stay_on;
use sksm_guest::page::{PAGE, TABLE};

use crate::expect::{apart, merge_gives, one_page};

pub const TESTS: &[Test] = &[
    test("order/cpus-begin-far-apart", far_apart),
    test("order/all-is-merged-wherever-it-begins", all_merged),
];

const TABLES: usize = 4;
const TABLE_PAGES: usize = TABLE / PAGE;
/// The page table that a call on each of the first CPUs begins with.
const BEGINS: [usize; TABLES] = [0, 2, 1, 3];

fn cpus() -> Result<usize> {
    Ok(available_parallelism()?.get().min(BEGINS.len()))
}

/// Of equal pages, the first one that a call comes to is published, so the others come to its frame.
fn far_apart() -> Result<()> {
    for (cpu, table) in BEGINS.into_iter().enumerate().take(cpus()?) {
        stay_on(cpu)?;
        let map = Map::aligned(TABLES * TABLE_PAGES, TABLE, 0)?;
        let first_of = |table: usize| table * TABLE_PAGES;
        (0..TABLES).for_each(|table| map.fill(first_of(table), 7));
        let pfns =
            || -> Result<Vec<u64>> { (0..TABLES).map(|table| map.pfn(first_of(table))).collect() };
        let before = pfns()?;
        map.merge()?;
        let after = pfns()?;
        ensure!(
            after == [before[table]; TABLES],
            "CPU {cpu} did not begin with table {table}: {before:x?}, then {after:x?}"
        );
    }
    Ok(())
}

/// A range with a hole where it may begin, and of several VMAs.
fn all_merged() -> Result<()> {
    const MIDDLE: usize = TABLES / 2 * TABLE_PAGES;
    const END: usize = TABLES * TABLE_PAGES - 7;
    const START: usize = 5;
    for cpu in 0..cpus()? {
        stay_on(cpu)?;
        let map = Map::aligned(TABLES * TABLE_PAGES, TABLE, 0)?;
        let inside = [
            START,
            TABLE_PAGES - 1,
            TABLE_PAGES,
            MIDDLE - 5,
            MIDDLE + 6,
            MIDDLE + TABLE_PAGES - 1,
            MIDDLE + TABLE_PAGES,
            END - 1,
        ];
        let outside = [START - 1, END];
        (inside.iter().chain(&outside)).for_each(|page| map.fill(*page, 7));
        map.unmap_pages(MIDDLE - 4..MIDDLE + 6)?;
        map.protect_pages(
            MIDDLE + TABLE_PAGES - 1..MIDDLE + TABLE_PAGES,
            libc::PROT_READ,
        )?;
        merge_gives(ENOMEM, map.page(START), (END - START) * PAGE)?;
        let pfns = |pages: &[usize]| -> Result<Vec<u64>> {
            pages.iter().map(|page| map.pfn(*page)).collect()
        };
        let merged = pfns(&inside)?;
        one_page(&merged)?;
        apart(&[pfns(&outside)?, vec![merged[0]]].concat())?;
        for page in inside.into_iter().chain(outside) {
            map.expect(page, 7)?;
        }
    }
    Ok(())
}
