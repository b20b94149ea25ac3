//! Whether a page costs more, in time and in kernel memory, when many processes share it.

use anyhow::{Context, Result, ensure};
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::process::Child;
use sksm_records::bench::Unit;
use sksm_records::bench::names::{BYTES, MERGE, PUBLISH, SHARERS};

use crate::measure::{Bench, TABLE_PAGES, filled, fresh, name, timed_merge};

pub fn run(bench: &mut Bench) -> Result<()> {
    let most = SKSM.number("max_page_sharing")? as usize;
    let most = if bench.quick { most.min(32) } else { most };
    let pages = TABLE_PAGES;
    let first = fresh(pages);
    let rounds = bench.size(1, 3);
    let bins = most.next_power_of_two().ilog2() as usize + 1;
    let (mut times, mut bytes) = (vec![Vec::new(); bins], vec![Vec::new(); bins]);
    for round in 0..rounds {
        bench.tell(&format!("round {} of {rounds}", round + 1));
        let before = SKSM.number("bytes_metadata")?;
        let mut children = Vec::new();
        let mut alone = 0;
        for sharers in 1..=most {
            let child = Child::spawn(|parent| {
                let map = filled(pages, first)?;
                let taken = timed_merge(&map, 0..pages)?;
                parent.send(taken.as_nanos() as u64)?;
                parent.pause()
            })?;
            let taken = child.receive().context("a process that merges")?;
            children.push(child);
            // 1, 2, 4, 8, ...: each stands for the sharers after the power before.
            let bin = sharers.next_power_of_two().ilog2() as usize;
            times[bin].push(taken as f64 / pages as f64);
            if sharers == 1 {
                alone = SKSM.number("bytes_metadata")?;
            } else if sharers.is_power_of_two() || sharers == most {
                let more = SKSM.number("bytes_metadata")? - alone;
                bytes[bin].push(more as f64 / (pages * (sharers - 1)) as f64);
            }
        }
        let (shared, sharing) = (SKSM.number("pages_shared")?, SKSM.number("pages_sharing")?);
        ensure!(
            (shared, sharing) == (pages as i64, (pages * (most - 1)) as i64),
            "{most} processes have {shared} shared pages and {sharing} mappings beyond the first"
        );
        for child in children {
            child.go()?;
            child.join()?;
        }
        let left = SKSM.number("bytes_metadata")?;
        ensure!(
            left == before,
            "{left} bytes of metadata left, {before} before"
        );
    }
    for (bin, times) in times.into_iter().enumerate() {
        let what = if bin == 0 { PUBLISH } else { MERGE };
        bench.row(
            name(SHARERS, what).at((1 << bin).min(most)),
            Unit::NsPerPage,
            times,
        )?;
    }
    for (bin, bytes) in bytes.into_iter().enumerate().skip(1) {
        bench.row(
            name(SHARERS, BYTES).at((1 << bin).min(most)),
            Unit::Bytes,
            bytes,
        )?;
    }
    Ok(())
}
