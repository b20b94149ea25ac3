//! What the kernel counts, as the library reads it.

use anyhow::{Context, Result, ensure};
use sksm::{MergeStatistics, SystemStatistics};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;

fn system(name: &str) -> Result<i64> {
    let counters = SystemStatistics::sksm().context("no counters")?;
    counters.get(name).with_context(|| format!("no {name}"))
}

fn told(statistics: MergeStatistics) -> Result<[i64; 4]> {
    let MergeStatistics {
        merged_pages,
        published_pages,
        zero_pages,
        profit,
        ..
    } = statistics;
    let all = [merged_pages, published_pages, zero_pages, profit];
    let mut values = [0; 4];
    for (value, told) in values.iter_mut().zip(all) {
        *value = told.context("ksm_stat does not tell all")?;
    }
    Ok(values)
}

/// What was published without a twin costs, what was redirected saves.
pub fn of_a_process() -> Result<()> {
    let before = told(MergeStatistics::own()?)?;
    let map = Map::filled(&[1, 2, 3, 4, 4, 4, 0, 0])?;
    let change = || -> Result<Vec<i64>> {
        let now = told(MergeStatistics::of(std::process::id())?)?;
        Ok(now
            .iter()
            .zip(before)
            .map(|(now, before)| now - before)
            .collect())
    };
    map.merge_pages(0..3)?;
    ensure!(change()? == [0, 3, 0, -3 * 96], "{:?}", change()?);
    map.merge()?;
    let profit = 2 * (PAGE as i64 - 16) - 4 * 96;
    ensure!(change()? == [2, 4, 2, profit], "{:?}", change()?);
    sksm::unmerge_exact(map.addr(), map.len())?;
    ensure!(change()? == [0; 4], "{:?}", change()?);
    Ok(())
}

/// What was passed over is counted, and the profit is what it says it is.
pub fn of_the_system() -> Result<()> {
    let map = Map::filled(&[5; 100])?;
    map.advise_pages(0..40, libc::MADV_DONTDUMP)?;
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
    let refused = system("pages_refused")?;
    sksm::merge_remote(
        std::os::fd::AsFd::as_fd(&child.pidfd()?),
        &[(map.addr(), map.len())],
    )?;
    let refused = system("pages_refused")? - refused;
    ensure!(refused == 40, "{refused} pages passed over");
    child.go()?;
    child.join()?;
    let twins = Map::filled(&[6; 50])?;
    let sharing = system("pages_sharing")?;
    twins.merge()?;
    ensure!(system("pages_sharing")? - sharing == 49);
    let pages = system("pages_sharing")? + system("pages_zero")?;
    let profit = pages * PAGE as i64 - system("bytes_metadata")?;
    ensure!(system("general_profit")? == profit, "not {profit}");
    for counter in ["pages_swapped", "pages_swapped_in", "pages_asleep"] {
        ensure!(system(counter)? >= 0, "{counter}");
    }
    Ok(())
}
