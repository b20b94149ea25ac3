//! Processes half of whose memory is in huge pages, as a guest's is: in few of those all is in common, in more of them a little, as files in
//! page caches lie among memory that is a machine's own.

use std::time::Duration;

use anyhow::{Context, Result};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, Link};
use sksm_guest::page::{PAGE, TABLE};
use sksm_records::scan::{Part, Scanner};

use crate::running::{self, Running};
use crate::watch::Watch;

const PROCESSES: u64 = 4;
/// Huge pages of each; as much is in small ones.
const HUGE: usize = 16;
const IN_HUGE: usize = TABLE / PAGE;
/// So many of a huge page's 512 are in common where only some are.
const SOME: usize = 16;
const EVERY: Duration = Duration::from_millis(500);

/// Of four huge pages one is the same in all processes, two have some pages in common, one has none. What is in small pages is alike.
fn id(process: u64, page: usize) -> u64 {
    let common = match page / IN_HUGE % 4 {
        0 => true,
        1 | 2 => page % (IN_HUGE / SOME) == 0,
        _ => false,
    };
    let whose = if common { 0 } else { 1 + process };
    (1 + whose) << 32 | page as u64
}

fn holder(process: u64) -> Result<Child> {
    let child = Child::spawn(|parent: &Link| {
        let huge = Map::huge(HUGE * IN_HUGE, |page| id(process, page))?
            .context("this kernel has no huge pages")?;
        let small = Map::anon(HUGE * IN_HUGE)?;
        small.no_huge();
        small.fill_all(|page| id(process, huge.pages() + page));
        for map in [&huge, &small] {
            map.advise(libc::MADV_MERGEABLE).context("MADV_MERGEABLE")?;
        }
        parent.meet()?;
        huge.expect_all(|page| id(process, page))?;
        small.expect_all(|page| id(process, huge.pages() + page))
    })?;
    child.pause()?;
    Ok(child)
}

/// With this scanner.
pub fn watch(scanner: Scanner, most: Duration) -> Result<()> {
    let mut watch = Watch::new();
    watch.begin(&format!("{PROCESSES} processes fill their memory"));
    let holders = (0..PROCESSES).map(holder);
    let holders: Vec<Child> = holders.collect::<Result<_>>()?;
    watch.look(Part::Baseline, None)?;
    watch.begin(&format!("{} at work", scanner.label()));
    let running = Running::start(scanner)?;
    watch.look_until_settled(&running, most, EVERY)?;
    drop(running);
    for holder in holders {
        holder.go()?;
        holder.join()?;
    }
    running::forget()
}
