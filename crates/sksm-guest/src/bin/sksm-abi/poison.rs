//! Memory failure on merged pages.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::Map;
use sksm_guest::process::{Child, Ended, Link};
use sksm_guest::report::{Test, skip, test};

use crate::expect::{merged, one_page};

pub const TESTS: &[Test] = &[
    test("poison/soft-offline", soft_offline),
    test("poison/memory-failure", memory_failure),
];

/// An advice on no pages tells whether the kernel knows it.
fn needs_memory_failure(map: &Map) -> Result<()> {
    if map.advise_pages(0..0, libc::MADV_HWPOISON).is_err() {
        return skip("no memory failure handling in this kernel (CONFIG_MEMORY_FAILURE)");
    }
    Ok(())
}

/// Moves a page off its frame and takes the frame out of use. An isolated page or a full batch is busy for a moment only.
fn offline(map: &Map, page: usize) -> Result<()> {
    const SOFT_OFFLINE: i32 = 101;
    const ATTEMPTS: usize = 20;
    for attempt in 1.. {
        match map.advise_pages(page..page + 1, SOFT_OFFLINE) {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::ResourceBusy && attempt < ATTEMPTS => {
                std::thread::yield_now();
            }
            Err(error) => return Err(error).context("soft offline"),
        }
    }
    Ok(())
}

/// Lets a page fail. Busy means that the kernel could not free it; it is marked as failed all the same.
fn fail(map: &Map, page: usize) -> Result<()> {
    match map.advise_pages(page..page + 1, libc::MADV_HWPOISON) {
        Err(error) if error.kind() != ErrorKind::ResourceBusy => {
            Err(error).context("memory failure")
        }
        _ => Ok(()),
    }
}

/// A merged page whose frame is taken out of use moves, for all who map it.
fn soft_offline() -> Result<()> {
    let map = Map::filled(&[5; 4])?;
    needs_memory_failure(&map)?;
    map.merge()?;
    let before = map.pfn(0)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.expect_all(|_| 5)?;
        map.fill(0, 6);
        map.expect_all(|page| if page == 0 { 6 } else { 5 })
    })?;
    child.pause()?;
    offline(&map, 1)?;
    one_page(&map.pfns()?)?;
    ensure!(map.pfn(0)? != before, "the page did not move");
    map.expect_all(|_| 5)?;
    child.go()?;
    child.join()?;
    // It is still found by content.
    let more = merged(2, 5)?;
    one_page(&[map.pfns()?, more.pfns()?].concat())
}

/// Whoever maps a failed page either still has its content or dies of SIGBUS; everybody else and the kernel go on.
fn memory_failure() -> Result<()> {
    let map = Map::filled(&[5, 5, 6])?;
    needs_memory_failure(&map)?;
    let body = |parent: &Link| {
        map.fill_all(|page| [5, 5, 6][page]);
        map.merge()?;
        one_page(&map.pfns()?[..2])?;
        parent.meet()?;
        map.expect(2, 6)?;
        map.expect(0, 5)?;
        map.expect(1, 5)
    };
    let sharers = (0..3)
        .map(|_| Child::spawn(body))
        .collect::<Result<Vec<_>>>()?;
    sharers.iter().try_for_each(|child| child.pause())?;
    let tolerable = |ended| matches!(ended, Ended::Exit(0) | Ended::Signal(libc::SIGBUS));
    let ended = Child::spawn(|_| {
        map.merge()?;
        fail(&map, 0)?;
        map.expect(2, 6)
    })?
    .ended()?;
    ensure!(
        tolerable(ended),
        "the process with the failed page: {ended}"
    );
    for child in sharers {
        // It may be dead already, then nobody listens.
        child.go().ok();
        let ended = child.ended()?;
        eprintln!("a sharer of the failed page: {ended}");
        ensure!(tolerable(ended), "a sharer of the failed page: {ended}");
    }
    // The failed page is nobody's twin.
    let more = merged(3, 5)?;
    more.expect_all(|_| 5)?;
    map.expect(2, 6)
}
