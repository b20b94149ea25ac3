//! What merged pages cost later: writing to them, forking, exiting.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::{Map, TABLE};
use sksm_guest::process::Child;
use sksm_guest::sysfs::SKSM;

use crate::ksm;
use crate::measure::{
    Bench, TABLE_PAGES, Wanted, counting, filled, fresh, merged, name, settle, timed,
};

pub const WRITE: &str = "write fault";
pub const FORK: &str = "fork, and exit of the child";
pub const EXIT: &str = "exit of a process";

pub fn run(bench: &mut Bench) -> Result<()> {
    let pages = bench.size(1, 4) * TABLE_PAGES;
    write_faults(bench, pages)?;
    forks(bench, pages)?;
    exits(bench, pages)
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

fn write_faults(bench: &mut Bench, pages: usize) -> Result<()> {
    let repeats = bench.size(3, 15);
    bench.per_page(name(WRITE, "new page"), pages, repeats, || {
        write(&Map::aligned(pages, TABLE, 0)?)
    })?;
    bench.per_page(name(WRITE, "forked page: copied"), pages, repeats, || {
        let map = filled(pages, fresh(pages))?;
        let child = Child::spawn(|parent| parent.meet())?;
        child.pause()?;
        let taken = write_and_look(&map, true)?;
        child.go()?;
        child.join()?;
        Ok(taken)
    })?;
    bench.per_page(
        name(WRITE, "forked page, child gone: in place"),
        pages,
        repeats,
        || {
            let map = filled(pages, fresh(pages))?;
            Child::spawn(|_| Ok(()))?.join()?;
            write_and_look(&map, false)
        },
    )?;
    let first = fresh(pages);
    let published = merged(pages, first)?;
    bench.per_page(
        name(WRITE, "merged page, shared: copied"),
        pages,
        repeats,
        || {
            let map = filled(pages, first)?;
            counting(Wanted::merge(pages), || map.merge())?;
            write_and_look(&map, true)
        },
    )?;
    drop(published);
    bench.per_page(
        name(WRITE, "merged page, only user: in place"),
        pages,
        repeats,
        || {
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
        },
    )?;
    let repeats = bench.size(2, 5);
    bench.per_page(
        name(WRITE, "KSM page, shared: copied"),
        pages,
        repeats,
        || {
            let (map, _twin) = ksm::twins(pages)?;
            write_and_look(&map, true)
        },
    )
}

/// Makes the pages of one kind.
type Make<'a> = &'a dyn Fn() -> Result<Map>;

/// Pages of three kinds, which differ in nothing else.
fn kinds(pages: usize, each: &mut dyn FnMut(&str, Make) -> Result<()>) -> Result<()> {
    each("ordinary pages", &|| filled(pages, fresh(pages)))?;
    each("merged pages, one user", &|| merged(pages, fresh(pages)))?;
    let first = fresh(pages);
    let _published = merged(pages, first)?;
    each("merged pages, shared", &|| merged(pages, first))
}

/// A process that has such pages, and nothing else that the other kinds have not.
fn forks(bench: &mut Bench, pages: usize) -> Result<()> {
    let repeats = bench.size(3, 15);
    kinds(pages, &mut |kind, make| {
        // In a child: the parent's other pages would be forked, too.
        let mut values = Vec::new();
        let child = Child::spawn(|parent| {
            let _map = make()?;
            for _ in 0..=repeats {
                let taken = timed(|| Child::spawn(|_| Ok(()))?.join())?;
                parent.send(taken.as_nanos() as u64)?;
            }
            Ok(())
        })?;
        for round in 0..=repeats {
            let taken = child.receive().context("a process that forks")? as f64;
            if round > 0 {
                values.push(taken / pages as f64);
            }
        }
        child.join()?;
        settle()?;
        bench.row(name(FORK, kind), sksm_guest::bench::Unit::NsPerPage, values)
    })
}

fn exits(bench: &mut Bench, pages: usize) -> Result<()> {
    let repeats = bench.size(3, 15);
    kinds(pages, &mut |kind, make| {
        bench.per_page(name(EXIT, kind), pages, repeats, || {
            let child = Child::spawn(|parent| {
                let map = make()?;
                parent.meet()?;
                std::mem::forget(map);
                Ok(())
            })?;
            child.pause()?;
            let taken = timed(|| {
                child.go()?;
                child.join()
            })?;
            settle()?;
            Ok(taken)
        })
    })
}
