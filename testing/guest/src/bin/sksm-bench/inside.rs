//! What the kernel itself needs to hash one page and to compare two: the time of ksmd, which does little else, by how often it is
//! met in the functions that do it.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sksm_guest::machine::cpu;
use sksm_guest::machine::ksmd;
use sksm_guest::machine::profile::{Sampler, Symbols};
use sksm_guest::machine::sysfs::KSM;
use sksm_guest::memory::map::Map;
use sksm_guest::page::{TABLE, WORDS};
use sksm_records::bench::Unit;
use sksm_records::bench::names::{KERNEL_COMPARE, KERNEL_HASH, SMALL};
use sksm_records::statistics::Summary;

use crate::measure::{Bench, TABLE_PAGES, filled, fresh, name};

const EVERY: Duration = Duration::from_micros(20);

const HASH: &str = "xxh64";
const COMPARE: &str = "memcmp";

pub fn run(bench: &mut Bench) -> Result<()> {
    if Sampler::new(0, EVERY)?.is_none() {
        bench.note(
            "xxh64 and comparing in the kernel: cannot be told apart without perf events (CONFIG_PERF_EVENTS)",
        );
        return Ok(());
    }
    let pages = bench.size(4, 16) * TABLE_PAGES;
    let all_differ = filled(pages, fresh(pages))?;
    let [hash, early] = scanned(bench, &all_differ)?;
    drop(all_differ);
    // Two and two differ in their last words only. In a sorted tree the second of them meets the first.
    let pairs = Map::aligned(pages, TABLE, 0)?;
    let first = fresh(pages);
    pairs.fill_all(|page| first + page as u64 / 2);
    (0..pages).for_each(|page| pairs.put(page, WORDS - 1, page as u64));
    let [_, late] = scanned(bench, &pairs)?;
    let Some(early) = Summary::of(early).filter(|_| !late.is_empty()) else {
        bench.note("xxh64 and comparing in the kernel: no samples of ksmd came");
        return Ok(());
    };
    let early = early.median;
    let compare = late.into_iter().map(|late| 2.0 * (late - early)).collect();
    bench.row(name(KERNEL_HASH, SMALL), Unit::NsPerPage, hash)?;
    bench.row(name(KERNEL_COMPARE, SMALL), Unit::NsPerPage, compare)?;
    bench.note(format!(
        "{KERNEL_HASH}: ksmd's time for a page that equals none, of which it takes one checksum, by the share of samples in {HASH}"
    ));
    bench.note(format!(
        "{KERNEL_COMPARE}: the same by the share in {COMPARE}, for two pages that differ at their end, beyond that for pages that differ at their start"
    ));
    Ok(())
}

/// Lets ksmd scan pages that equal none: nanoseconds a page that it hashes, and that it compares.
fn scanned(bench: &mut Bench, map: &Map) -> Result<[Vec<f64>; 2]> {
    let sampler = Sampler::new(cpu::ksmd()?.pid(), EVERY)?.context("no samples of ksmd")?;
    let symbols = Symbols::read()?;
    map.advise(libc::MADV_MERGEABLE)?;
    ksmd::forget()?;
    KSM.write("sleep_millisecs", 0)?;
    // It tells what it has scanned when it has scanned so many.
    KSM.write("pages_to_scan", 500)?;
    // Each time around, whether or not a page was in vain before.
    KSM.write("smart_scan", 0)?;
    let scans = KSM.number("full_scans")?;
    KSM.write("run", 1)?;
    let window = Duration::from_millis(bench.size(100, 400) as u64);
    // At first it remembers only.
    for _ in 0..100 {
        sleep(window);
        if KSM.number("full_scans")? - scans >= 2 {
            break;
        }
    }
    let mut values = [Vec::new(), Vec::new()];
    for _ in 0..bench.size(3, 9) {
        bench.tell(KERNEL_HASH);
        let before = (KSM.number("pages_scanned")?, cpu_seconds()?);
        let ((), samples) = sampler.during(|| {
            sleep(window);
            Ok(())
        })?;
        let pages = KSM.number("pages_scanned")? - before.0;
        let taken = cpu_seconds()? - before.1;
        // On a machine that is busy with something else, samples may fail to come.
        if pages == 0 || samples.len() < 100 {
            continue;
        }
        let each = taken * 1e9 / pages as f64;
        for (values, function) in values.iter_mut().zip([HASH, COMPARE]) {
            values.push(each * symbols.share(&samples, function));
        }
    }
    let merged = KSM.number("pages_sharing")?;
    ensure!(merged == 0, "{merged} pages equal others");
    ksmd::forget()?;
    Ok(values)
}

fn cpu_seconds() -> Result<f64> {
    cpu::of_ksmd()?.context("ksmd's CPU time is not known")
}
