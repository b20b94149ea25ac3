//! Memory that another process's advice passes over: the owner has said that it is not for others, and has not asked itself.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use libc::{MADV_DONTDUMP, MADV_WIPEONFORK};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::memory::rights::{set_dumpable, set_users};
use sksm_guest::page::PAGE;
use sksm_guest::syscall::check;

use crate::expect::{apart, one_page};
use crate::marks::set;

pub const TESTS: &[Test] = &[
    test("domain/locked-memory", || {
        of_a_part(|map| {
            // SAFETY: a part of the mapping; contents do not change.
            check(unsafe { libc::mlock(map.addr() as *const _, map.len()) }).context("mlock")?;
            Ok(())
        })
    }),
    test("domain/memory-kept-from-dumps", || {
        of_a_part(|map| Ok(map.advise(MADV_DONTDUMP)?))
    }),
    test("domain/memory-kept-from-children", || {
        of_a_part(|map| Ok(map.advise(MADV_WIPEONFORK)?))
    }),
    test("domain/not-dumpable", not_dumpable),
    test("domain/not-dumpable-below-a-mark", below_a_mark),
    test("domain/rights-dropped-below-a-mark", dropped_below_a_mark),
    test("domain/own-advice-is-ones-own", own_advice),
];

fn refused() -> Result<i64> {
    SKSM.number("pages_refused")
}

const PAGES: usize = 12;

/// A child that prepares its pages, all of one content, and stays. When told to go on it merges them itself.
fn child(map: &Map, prepare: impl FnOnce() -> Result<()>) -> Result<Child> {
    let child = Child::spawn(|parent| {
        map.fill_all(|_| 5);
        prepare()?;
        parent.meet()?;
        map.merge()?;
        parent.meet()?;
        map.expect_all(|_| 5)
    })?;
    child.pause()?;
    Ok(child)
}

fn merge_remotely(child: &Child, map: &Map) -> Result<Vec<u64>> {
    let advised = sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
    ensure!(advised == map.len(), "{advised} bytes advised");
    child.pagemap()?.pfns(map.addr(), map.pages())
}

/// It merges its pages itself: all of them are one page then.
fn merges_itself(child: Child, map: &Map) -> Result<()> {
    child.go()?;
    child.pause()?;
    one_page(&child.pagemap()?.pfns(map.addr(), map.pages())?)?;
    child.go()?;
    child.join()
}

/// The middle third is set aside; the call goes on behind it, and says how many pages it left.
fn of_a_part(set_aside: fn(&Map) -> Result<()>) -> Result<()> {
    let map = Map::filled(&[1; PAGES])?;
    let third = PAGES / 3;
    let child = child(&map, || set_aside(&map.part(third..2 * third)))?;
    let before = refused()?;
    let pfns = merge_remotely(&child, &map)?;
    apart(&pfns[third..2 * third]).context("pages that were set aside merged")?;
    one_page(&[&pfns[..third], &pfns[2 * third..]].concat())?;
    let counted = refused()? - before;
    ensure!(counted == third as i64, "{counted} pages count as refused");
    // A range of nothing else.
    let part = (map.page(third + 1), PAGE);
    let advised = sksm::merge_remote(child.pidfd()?.as_fd(), &[part])?;
    ensure!(advised == PAGE, "{advised} bytes advised");
    ensure!(refused()? - before == third as i64 + 1, "one page more");
    merges_itself(child, &map)?;
    ensure!(
        refused()? - before == third as i64 + 1,
        "its own advice was refused"
    );
    Ok(())
}

/// Nobody else decides for a process whose memory others must not look at.
fn not_dumpable() -> Result<()> {
    for mode in ["cgroup", "user", "global"] {
        SKSM.write("domain", mode)?;
        let map = Map::filled(&[1; PAGES])?;
        let child = child(&map, || set_dumpable(false))?;
        let before = refused()?;
        apart(&merge_remotely(&child, &map)?)
            .with_context(|| format!("domain {mode}: pages that nobody may look at merged"))?;
        let counted = refused()? - before;
        ensure!(counted == PAGES as i64, "{counted} pages count as refused");
        merges_itself(child, &map)?;
    }
    Ok(())
}

/// Root's call for a process in a marked group.
fn marked(prepare: fn() -> Result<()>) -> Result<()> {
    let group = Cgroup::new("unit")?;
    set(&group, "user")?;
    let map = Map::filled(&[1; PAGES])?;
    let child = child(&map, || {
        group.enter()?;
        prepare()
    })?;
    let before = refused()?;
    one_page(&merge_remotely(&child, &map)?)?;
    ensure!(refused()? == before, "pages count as refused");
    merges_itself(child, &map)
}

/// Who marked the group has said that its processes are one unit, those too that are not dumpable.
fn below_a_mark() -> Result<()> {
    marked(|| set_dumpable(false))
}

/// Workers that were root once.
fn dropped_below_a_mark() -> Result<()> {
    marked(|| set_users(1001, 1001, 1001))
}

/// For its own memory a process may ask whatever else it has said about it.
fn own_advice() -> Result<()> {
    let map = Map::filled(&[1; PAGES])?;
    let child = child(&map, || {
        set_dumpable(false)?;
        let part = map.part(0..4);
        // SAFETY: a part of the mapping; contents do not change.
        check(unsafe { libc::mlock(part.addr() as *const _, part.len()) }).context("mlock")?;
        map.part(4..6).advise(MADV_DONTDUMP)?;
        map.part(6..8).advise(MADV_WIPEONFORK)?;
        Ok(())
    })?;
    let before = refused()?;
    merges_itself(child, &map)?;
    ensure!(refused()? == before, "its own advice was refused");
    Ok(())
}
