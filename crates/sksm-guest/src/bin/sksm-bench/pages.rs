//! What one page costs, by what becomes of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sksm_guest::bench::names::{
    DUPLICATE, HUGE, MERGED_ALREADY, NOT_PRESENT, PUBLISH, SMALL, ZEROS,
};
use sksm_guest::memory::{Map, TABLE};
use sksm_guest::pagemap::Flags;

use crate::measure::{
    Bench, TABLE_PAGES, Wanted, counting, filled, fresh, merged, name, settle, timed_merge,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let pages = bench.size(1, 4) * TABLE_PAGES;
    small(bench, pages)?;
    match Map::huge(TABLE_PAGES, |_| 0)? {
        Some(map) => {
            drop(map);
            huge(bench, pages)
        }
        None => {
            bench.note("huge pages: not in this kernel");
            Ok(())
        }
    }
}

fn small(bench: &mut Bench, pages: usize) -> Result<()> {
    const VARIANT: &str = SMALL;
    let repeats = bench.size(3, 15);
    bench.per_page(name(PUBLISH, VARIANT), pages, repeats, || {
        publish(filled(pages, fresh(pages))?)
    })?;

    let first = fresh(pages);
    let published = merged(pages, first)?;
    bench.per_page(name(DUPLICATE, VARIANT), pages, repeats, || {
        let map = filled(pages, first)?;
        let taken = counting(Wanted::merge(pages), || timed_merge(&map, 0..pages))?;
        ensure!(map.pfns()? == published.pfns()?, "equal pages apart");
        Ok(taken)
    })?;

    bench.per_page(name(ZEROS, VARIANT), pages, repeats, || {
        let map = Map::aligned(pages, TABLE, 0)?;
        map.fill_all(|_| 0);
        counting(Wanted::merge(pages), || timed_merge(&map, 0..pages))
    })?;

    let map = merged(pages, first)?;
    bench.per_page(name(MERGED_ALREADY, VARIANT), pages, repeats, || {
        counting(Wanted::default(), || timed_merge(&map, 0..pages))
    })?;

    // The page tables stay.
    let map = filled(pages, first)?;
    map.advise(libc::MADV_DONTNEED)?;
    bench.per_page(name(NOT_PRESENT, VARIANT), pages, repeats, || {
        counting(Wanted::default(), || timed_merge(&map, 0..pages))
    })
}

/// Publishes all of a map, and sees it go.
pub fn publish(map: Map) -> Result<Duration> {
    let pages = map.pages();
    let taken = counting(Wanted::publish(pages), || timed_merge(&map, 0..pages))?;
    drop(map);
    settle()?;
    Ok(taken)
}

fn huge(bench: &mut Bench, pages: usize) -> Result<()> {
    const VARIANT: &str = HUGE;
    let repeats = bench.size(3, 9);
    let filled =
        |id: &dyn Fn(usize) -> u64| Map::huge(pages, id)?.context("no huge pages any more");
    bench.per_page(name(PUBLISH, VARIANT), pages, repeats, || {
        let first = fresh(pages);
        publish(filled(&|page| first + page as u64)?)
    })?;
    let first = fresh(pages);
    let _published = merged(pages, first)?;
    bench.per_page(name(DUPLICATE, VARIANT), pages, repeats, || {
        let map = filled(&|page| first + page as u64)?;
        counting(Wanted::merge(pages), || timed_merge(&map, 0..pages))
    })?;
    // Splitting does it: mm maps the zero page where it finds zeros, and leaves the engine nothing to look at.
    bench.per_page(name(ZEROS, VARIANT), pages, repeats, || {
        let map = filled(&|_| 0)?;
        let taken = counting(Wanted::default(), || timed_merge(&map, 0..pages))?;
        for pfn in map.pfns()? {
            ensure!(Flags::of(pfn)?.zero_page(), "a page of zeros is left");
        }
        Ok(taken)
    })
}
