//! In which order a call merges its pages: it begins at another place on each CPU, and leaves nothing out.

use std::thread::available_parallelism;

use anyhow::{Result, ensure};
use libc::ENOMEM;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::stay_on;
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::skip::skip;

use crate::expect::{apart, merge_gives, one_page};
use crate::program::Program;

pub const TESTS: &[Test] = &[
    test("order/cpus-begin-far-apart", far_apart),
    test("order/all-is-merged-wherever-it-begins", all_merged),
    test("order/any-length", any_length),
];

const TABLES: usize = 4;
const TABLE_PAGES: usize = TABLE / PAGE;
/// The page table that a call over so many begins with, on each of the first CPUs.
const BEGINS: [usize; TABLES] = [0, 2, 1, 3];

fn cpus() -> Result<usize> {
    Ok(available_parallelism()?.get().min(BEGINS.len()))
}

/// Of equal pages, the first one that a call comes to is published, so the others come to its frame.
fn far_apart() -> Result<()> {
    let cpus = cpus()?;
    if cpus == 1 {
        return skip("one CPU");
    }
    for (cpu, table) in BEGINS.into_iter().enumerate().take(cpus) {
        stay_on(cpu)?;
        let mut tries = 0;
        let (before, after) = loop {
            let map = Map::aligned(TABLES * TABLE_PAGES, TABLE, 0)?;
            let pfns = || -> Result<Vec<u64>> {
                let tables = 0..TABLES;
                tables.map(|table| map.pfn(table * TABLE_PAGES)).collect()
            };
            tries += 1;
            // Nobody has published it: what goes away may still be in somebody's hands.
            let id = (10 * tries + cpu) as u64;
            (0..TABLES).for_each(|table| map.fill(table * TABLE_PAGES, id));
            let before = pfns()?;
            let start = Counters::now()?;
            map.merge()?;
            // The kernel may be at work on a page just now, which is left then.
            if start.change()?.pages_busy == 0 || tries == 10 {
                break (before, pfns()?);
            }
        };
        ensure!(
            after == [before[table]; TABLES],
            "CPU {cpu} did not begin with table {table}: {before:x?}, then {after:x?}"
        );
    }
    Ok(())
}

/// A range with a hole where CPU 1 begins, and of several VMAs.
fn all_merged() -> Result<()> {
    const MIDDLE: usize = TABLES / 2 * TABLE_PAGES;
    const START: usize = 5;
    const END: usize = (TABLES + 1) * TABLE_PAGES - 7;
    for cpu in 0..cpus()? {
        stay_on(cpu)?;
        let map = Map::aligned((TABLES + 1) * TABLE_PAGES, TABLE, 0)?;
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
        let of_its_own = MIDDLE + TABLE_PAGES - 1..MIDDLE + TABLE_PAGES;
        map.protect_pages(of_its_own, libc::PROT_READ)?;
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

/// A program of its own: what is merged there is nobody else's, as memory that a child has from its parent is.
fn any_length() -> Result<()> {
    Program::start("any-length")?.end()
}

/// Far more than there are addresses: all that is mapped is merged.
pub fn merge_any_length() -> Result<()> {
    for cpu in 0..cpus()? {
        stay_on(cpu)?;
        for log in [40, 56, 62] {
            let map = Map::filled(&[log, log])?;
            merge_gives(ENOMEM, 0, 1 << log)?;
            // Below 2^40 nothing is mapped.
            if log > 40 {
                one_page(&map.pfns()?)?;
            }
        }
    }
    Ok(())
}
