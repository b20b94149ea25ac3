//! The way back: pages that were merged have frames of their own again, whoever asks for it.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use sksm::{Process, ProcessStatistics, Region};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{Flags, copies};
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;

/// Whether one of these frames is the zero page.
fn zeros(pfns: &[u64]) -> Result<bool> {
    for pfn in pfns {
        if Flags::of(*pfn)?.zero_page() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Equal pages and zeros, where nobody ever asked for KSM.
pub fn own() -> Result<()> {
    let map = Map::filled(&[5, 5, 5, 5, 0, 0, 0, 0])?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 2, "not merged");
    // The pages that hold any of the range, so two of them.
    sksm::unmerge_range(map.page(1) - 1, 2)?;
    ensure!(copies(&map.pfns()?) == 4, "{:?}", map.pfns()?);
    sksm::unmerge_exact(map.addr(), map.len())?;
    let pfns = map.pfns()?;
    ensure!(copies(&pfns) == 8 && !zeros(&pfns)?, "{pfns:?}");
    map.expect_all(|page| if page < 4 { 5 } else { 0 })?;
    // Once more, with nothing left to do.
    sksm::unmerge_exact(map.addr(), map.len())?;
    // And it merges again.
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 2, "not merged again");
    map.unmap_pages(3..4)?;
    let region = Region::from((map.addr(), map.len()));
    let undone = sksm::unmerge_exact(region.start, region.len);
    ensure!(crate::is_hole(undone.err(), region), "{undone:?}");
    ensure!(copies(&map.part(4..8).pfns()?) == 4, "behind the hole");
    Ok(())
}

/// A whole process, also what it cannot access any more.
pub fn own_process() -> Result<()> {
    let (map, closed) = (Map::filled(&[6; 20])?, Map::filled(&[7; 20])?);
    map.merge()?;
    closed.merge()?;
    closed.protect(libc::PROT_NONE)?;
    let done = Process::own().unmerge_all()?;
    ensure!(done.advised >= map.len() + closed.len(), "{done:?}");
    ensure!(copies(&map.pfns()?) == 20, "not undone");
    closed.protect(libc::PROT_READ)?;
    ensure!(
        copies(&closed.pfns()?) == 20,
        "not undone where it is closed"
    );
    ensure!(
        ProcessStatistics::own()?.ksm == 0,
        "something is merged still"
    );
    closed.expect_all(|_| 7)
}

/// By its pidfd, more ranges than one call takes, some of which are not there.
pub fn other_process() -> Result<()> {
    const PAGES: usize = 3000;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let child = Child::spawn(|parent| {
        map.fill_all(|page| page as u64 / 100);
        map.merge()?;
        let holes = [0, 1500, 2999];
        for hole in holes {
            map.unmap_pages(hole..hole + 1)?;
        }
        parent.meet()?;
        for page in (0..PAGES).filter(|page| !holes.contains(page)) {
            map.expect(page, page as u64 / 100)?;
        }
        Ok(())
    })?;
    child.pause()?;
    let frames = || -> Result<Vec<u64>> {
        let pagemap = child.pagemap()?;
        let mut frames = pagemap.pfns(map.page(1), 1499)?;
        frames.extend(pagemap.pfns(map.page(1501), 1498)?);
        Ok(frames)
    };
    ensure!(copies(&frames()?) == 30, "{} copies", copies(&frames()?));
    let pidfd = child.pidfd()?;
    // Up to the hole.
    let ranges = [(map.page(1), 10 * PAGE), (map.page(1500), 10 * PAGE)];
    let advised = sksm::unmerge_remote(pidfd.as_fd(), &ranges)?;
    ensure!(advised == 10 * PAGE, "{advised} bytes");
    let ranges: Vec<Region> = (0..PAGES)
        .map(|page| Region::from((map.page(page), PAGE)))
        .collect();
    let done = sksm::unmerge_remote_each(pidfd.as_fd(), &ranges)?;
    ensure!(done.advised == (PAGES - 3) * PAGE, "{} bytes", done.advised);
    ensure!(done.refused.len() == 3, "{:?}", done.refused);
    let frames = frames()?;
    ensure!(
        copies(&frames) == PAGES - 3 && !zeros(&frames)?,
        "not undone"
    );
    child.go()?;
    child.join()
}

/// What parent and child have in common since a fork stays so where nothing of it was merged.
pub fn forks_share_on() -> Result<()> {
    let map = Map::filled(&[1, 2, 3, 4])?;
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
    let before = map.pfns()?;
    sksm::unmerge_exact(map.addr(), map.len())?;
    let process = Process::open(child.pid() as u32)?;
    process.unmerge(|mapping| mapping.region.contains(map.addr()))?;
    ensure!(map.pfns()? == before, "copied here");
    let there = child.pagemap()?.pfns(map.addr(), 4)?;
    ensure!(there == before, "copied in the child");
    child.go()?;
    child.join()
}
