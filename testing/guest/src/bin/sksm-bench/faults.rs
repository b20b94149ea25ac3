//! Page faults and unmapping. What is about ordinary pages alone runs in any kernel, so that one without CONFIG_SKSM can be
//! compared.

use std::time::Duration;

use anyhow::{Result, ensure};
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::page::TABLE;
use sksm_records::bench::names::{
    FORKED, FORKED_ALONE, KSM_SHARED, MERGED_ALONE, MERGED_SHARED, NEW, UNMAP, WRITE,
};

use crate::ksm;
use crate::measure::{
    Bench, TABLE_PAGES, Wanted, counting, each_kind, filled, fresh, merged, merges, name, settle,
    timed,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let pages = bench.size(1, 4) * TABLE_PAGES;
    let repeats = bench.size(5, 25);
    bench.per_page(name(WRITE, NEW), pages, repeats, || {
        write(&Map::aligned(pages, TABLE, 0)?)
    })?;
    bench.per_page(name(WRITE, FORKED), pages, repeats, || {
        let map = filled(pages, fresh(pages))?;
        let child = Child::spawn(|parent| parent.meet())?;
        child.pause()?;
        let taken = write_and_look(&map, true)?;
        child.go()?;
        child.join()?;
        Ok(taken)
    })?;
    bench.per_page(name(WRITE, FORKED_ALONE), pages, repeats, || {
        let map = filled(pages, fresh(pages))?;
        Child::spawn(|_| Ok(()))?.join()?;
        write_and_look(&map, false)
    })?;
    if merges() {
        write_merged(bench, pages)?;
    }
    if KSM.exists() {
        let repeats = bench.size(2, 5);
        bench.per_page(name(WRITE, KSM_SHARED), pages, repeats, || {
            let (map, _twin) = ksm::twins(pages)?;
            write_and_look(&map, true)
        })?;
    }
    each_kind(pages, |kind, make| {
        bench.per_page(name(UNMAP, kind), pages, repeats, || {
            let map = make()?;
            let taken = timed(|| {
                drop(map);
                Ok(())
            })?;
            settle()?;
            Ok(taken)
        })
    })
}

fn write_merged(bench: &mut Bench, pages: usize) -> Result<()> {
    let repeats = bench.size(3, 15);
    let first = fresh(pages);
    let published = merged(pages, first)?;
    bench.per_page(name(WRITE, MERGED_SHARED), pages, repeats, || {
        let map = filled(pages, first)?;
        counting(Wanted::merge(pages), || map.merge())?;
        write_and_look(&map, true)
    })?;
    drop(published);
    bench.per_page(name(WRITE, MERGED_ALONE), pages, repeats, || {
        let map = filled(pages, fresh(pages))?;
        counting(Wanted::publish(pages), || map.merge())?;
        let before = SKSM.number("pages_withdrawn")?;
        let taken = write_and_look(&map, false)?;
        let withdrawn = SKSM.number("pages_withdrawn")? - before;
        ensure!(
            withdrawn >= pages as i64 * 99 / 100,
            "{withdrawn} of {pages} pages were withdrawn"
        );
        settle()?;
        Ok(taken)
    })
}

/// One write to each page.
fn write(map: &Map) -> Result<Duration> {
    timed(|| {
        (0..map.pages()).for_each(|page| map.put(page, 1, 1));
        Ok(())
    })
}

/// One write to each page, which must land on another physical page, or on the same.
fn write_and_look(map: &Map, copied: bool) -> Result<Duration> {
    let before = map.pfns()?;
    let taken = write(map)?;
    let moved = before
        .iter()
        .zip(map.pfns()?)
        .filter(|(before, after)| *before != after);
    let (moved, wanted) = (moved.count(), if copied { map.pages() } else { 0 });
    ensure!(
        moved.abs_diff(wanted) <= map.pages() / 100,
        "writing copied {moved} pages instead of {wanted}: this measures something else"
    );
    Ok(taken)
}
