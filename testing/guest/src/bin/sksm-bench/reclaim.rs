//! Reclaim to compressed swap space, and reading back.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::Swap;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;
use sksm_records::bench::Unit;
use sksm_records::bench::names::{BACK, KSM_TWICE, MERGED_TWICE, ORDINARY, OUT};

use crate::ksm;
use crate::measure::{Bench, TABLE_PAGES, filled, fresh, name, settle, timed};

type Make = fn(usize) -> Result<Vec<Map>>;

pub fn run(bench: &mut Bench) -> Result<()> {
    if !Path::new("/dev/zram0").exists() {
        bench.note("no zram device to swap to (CONFIG_ZRAM)");
        return Ok(());
    }
    let pages = bench.size(4, 16) * TABLE_PAGES;
    let repeats = bench.size(2, 5);
    let kinds: [(&str, Make); 3] = [
        (ORDINARY, |pages| Ok(vec![filled(pages, fresh(pages))?])),
        (MERGED_TWICE, |pages| {
            let first = fresh(pages);
            let maps = vec![filled(pages, first)?, filled(pages, first)?];
            maps.iter().try_for_each(Map::merge)?;
            ensure!(maps[0].pfns()? == maps[1].pfns()?, "equal pages apart");
            Ok(maps)
        }),
        (KSM_TWICE, |pages| {
            let (map, twin) = ksm::twins(pages)?;
            Ok(vec![map, twin])
        }),
    ];
    for (kind, make) in kinds {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        for warm in bench.rounds(repeats) {
            let (reclaimed, read) = once(pages, make)?;
            settle()?;
            if warm {
                out.push(reclaimed);
                back.push(read);
            }
            bench.tell(kind);
        }
        bench.row(name(OUT, kind), Unit::NsPerPage, out)?;
        bench.row(name(BACK, kind), Unit::NsPerPage, back)?;
    }
    Ok(())
}

/// A process in a group of its own that has to give up its pages: nanoseconds a page, out and back.
fn once(pages: usize, make: Make) -> Result<(f64, f64)> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("bench")?;
    let child = Child::spawn(|parent| {
        group.enter()?;
        let maps = make(pages)?;
        parent.send(maps.len() as u64)?;
        for map in &maps {
            parent.send(map.addr() as u64)?;
        }
        parent.pause()?;
        let taken = timed(|| {
            for map in &maps {
                (0..pages).for_each(|page| _ = map.get(page, 0));
            }
            Ok(())
        })?;
        parent.send(taken.as_nanos() as u64)
    })?;
    let maps = child.receive()? as usize;
    let addresses = (0..maps)
        .map(|_| child.receive())
        .collect::<Result<Vec<_>>>()?;
    let pagemap = child.pagemap()?;
    let swapped = || -> Result<usize> {
        let count = |addr: &u64| {
            let entries = pagemap.entries(*addr as usize, pages)?;
            Ok(entries.iter().filter(|entry| entry.swapped()).count())
        };
        addresses.iter().map(count).sum()
    };
    // An attempt may give up at pages that are busy just then.
    let mut taken = Duration::ZERO;
    let mut out = 0;
    for _ in 0..20 {
        let left = pages - out / maps;
        taken += timed(|| group.reclaim(left * PAGE).map(drop))?;
        out = swapped()?;
        if out >= maps * pages * 95 / 100 {
            break;
        }
    }
    ensure!(
        out >= maps * pages * 3 / 4,
        "only {out} of {} mappings could be swapped out",
        maps * pages
    );
    child.go()?;
    let back = child.receive()? as f64;
    child.join()?;
    Ok((
        taken.as_nanos() as f64 / (out as f64 / maps as f64),
        back / out as f64,
    ))
}
