//! The kernel memory that sharing takes, by either engine.

use anyhow::{Context, Result};
use sksm_guest::machine::ksmd;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::map::Map;
use sksm_records::bench::Unit;
use sksm_records::bench::names::{KSM_SLABS, MAPPINGS, OWN_COUNT, SKSM_SLABS};

use crate::ksm;
use crate::measure::{Bench, TABLE_PAGES, Wanted, counting, filled, fresh, name, settle};

pub fn run(bench: &mut Bench) -> Result<()> {
    bench.note("slabs: the growth of all objects in /proc/slabinfo, since caches of one size are merged; SKSM's hash table is not in them");
    let tables = bench.size(4, 32);
    for mappings in [1, 2, 3, 4, 9, 32, 128] {
        // Few pages of many mappings take about as much memory as many of few, and no more than User-Mode Linux can map.
        let pages = (tables * TABLE_PAGES / mappings).max(TABLE_PAGES / 2);
        bench.tell(MAPPINGS);
        let name = |variant| name(MAPPINGS, variant).at(mappings);
        let (own, slabs) = sksm(pages, mappings)?;
        bench.row(name(OWN_COUNT), Unit::Bytes, vec![own])?;
        bench.row(name(SKSM_SLABS), Unit::Bytes, vec![slabs])?;
        let slabs = by_ksm(pages, mappings)?;
        bench.row(name(KSM_SLABS), Unit::Bytes, vec![slabs])?;
    }
    Ok(())
}

fn maps(pages: usize, count: usize) -> Result<Vec<Map>> {
    let first = fresh(pages);
    (0..count).map(|_| filled(pages, first)).collect()
}

/// Bytes a page, by the engine's count and by the slabs.
fn sksm(pages: usize, mappings: usize) -> Result<(f64, f64)> {
    let maps = maps(pages, mappings)?;
    settle()?;
    let before = (SKSM.number("bytes_metadata")?, slabs()?);
    counting(Wanted::publish(pages), || maps[0].merge())?;
    counting(Wanted::merge(pages * (mappings - 1)), || {
        maps[1..].iter().try_for_each(Map::merge)
    })?;
    let own = SKSM.number("bytes_metadata")? - before.0;
    let slabs = slabs()? - before.1;
    drop(maps);
    settle()?;
    Ok((own as f64 / pages as f64, slabs as f64 / pages as f64))
}

fn by_ksm(pages: usize, mappings: usize) -> Result<f64> {
    let maps = maps(pages, mappings)?;
    ksmd::forget()?;
    let before = slabs()?;
    ksm::merge(&maps)?;
    let slabs = slabs()? - before;
    Ok(slabs as f64 / pages as f64)
}

/// Bytes of all objects in slabs.
fn slabs() -> Result<i64> {
    let text = std::fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    let mut bytes = 0;
    // Two lines of headings, then: name, objects in use, objects, size of an object.
    for line in text.lines().skip(2) {
        let mut words = line.split_whitespace().skip(1);
        let mut number = || words.next().and_then(|word| word.parse::<i64>().ok());
        let numbers = (number(), number(), number());
        let (Some(used), Some(_), Some(size)) = numbers else {
            anyhow::bail!("/proc/slabinfo has a line that is not as expected: {line:?}");
        };
        bytes += used * size;
    }
    Ok(bytes)
}
