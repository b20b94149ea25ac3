//! Pages with no other user than a CPU's batch of pages that are to move between LRU lists: they are as good as unused.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::stay_on_one_cpu;

use crate::expect::one_page;

pub const TESTS: &[Test] = &[
    test("batches/activated-pages-merge", || merges(activate)),
    test("batches/deactivated-pages-merge", || merges(deactivate)),
    test(
        "batches/activated-pages-are-withdrawn",
        activated_are_withdrawn,
    ),
];

/// One full batch, and part of another.
const PAGES: usize = 50;

/// What is read often by way of its address becomes active.
fn activate(map: &Map) -> Result<()> {
    let memory = OpenOptions::new().read(true).open("/proc/self/mem")?;
    for page in 0..map.pages() {
        for _ in 0..3 {
            memory.read_exact_at(&mut [0], map.page(page) as u64)?;
        }
    }
    Ok(())
}

/// Only what is active can be made less so.
fn deactivate(map: &Map) -> Result<()> {
    activate(map)?;
    settle()?;
    map.advise(libc::MADV_COLD).context("MADV_COLD")
}

/// Empties this CPU's batches.
fn settle() -> Result<()> {
    // A merge does it where a page is on no list yet. These are new.
    Map::filled(&[1, 2, 3])?.merge()
}

fn merges(prepare: fn(&Map) -> Result<()>) -> Result<()> {
    stay_on_one_cpu()?;
    let map = Map::filled(&[5; PAGES])?;
    settle()?;
    prepare(&map)?;
    let start = Counters::now()?;
    map.merge()?;
    let change = start.change()?;
    ensure!(change.pages_busy == 0, "{change:?}");
    one_page(&map.pfns()?)?;
    map.expect_all(|_| 5)
}

fn activated_are_withdrawn() -> Result<()> {
    stay_on_one_cpu()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(|page| page as u64 + 1);
    map.merge()?;
    let pages = map.pfns()?;
    activate(&map)?;
    let start = Counters::now()?;
    (0..PAGES).for_each(|page| map.put(page, 0, 1));
    let withdrawn = start.change()?.pages_withdrawn;
    ensure!(
        withdrawn == PAGES as i64,
        "{withdrawn} of {PAGES} written in place"
    );
    ensure!(map.pfns()? == pages, "the only user's pages were copied");
    (0..PAGES).try_for_each(|page| map.expect_after(page, 1, page as u64 + 1))
}
