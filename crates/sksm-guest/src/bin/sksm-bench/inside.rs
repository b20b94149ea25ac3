//! What the kernel itself needs to hash one page and to compare two: by how often its functions are met when something that
//! calls them is looked at many times.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sksm_guest::bench::Unit;
use sksm_guest::bench::names::{KERNEL_COMPARE, KERNEL_HASH, SMALL};
use sksm_guest::cpu;
use sksm_guest::ksmd;
use sksm_guest::profile::{Sampler, Symbols};
use sksm_guest::sysfs::KSM;

use crate::measure::{
    Bench, TABLE_PAGES, Wanted, counting, filled, fresh, merged, name, settle, timed_merge,
};

const EVERY: Duration = Duration::from_micros(20);

const HASH: &str = "xxh64";
/// In SKSM, which compares whole pages with nothing else.
const COMPARE: &str = "same_bytes";

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some(own) = Sampler::new(0, EVERY)? else {
        bench.note(
            "xxh64 and comparing in the kernel: cannot be told apart without perf events (CONFIG_PERF_EVENTS)",
        );
        return Ok(());
    };
    let symbols = Symbols::read()?;
    bench.note(format!(
        "{KERNEL_HASH}: ksmd's time for a page that equals none, of which it takes one checksum, by the share of samples in {HASH}"
    ));
    hash(bench, &symbols)?;
    compare(bench, &symbols, &own)
}

/// ksmd scans pages that change nothing for it.
fn hash(bench: &mut Bench, symbols: &Symbols) -> Result<()> {
    let pages = bench.size(4, 16) * TABLE_PAGES;
    let ksmd = cpu::ksmd()?.pid();
    let sampler = Sampler::new(ksmd, EVERY)?.context("no samples of ksmd")?;
    let map = filled(pages, fresh(pages))?;
    map.advise(libc::MADV_MERGEABLE)?;
    ksmd::forget()?;
    KSM.write("sleep_millisecs", 0)?;
    // It tells what it has scanned when it has scanned so many.
    KSM.write("pages_to_scan", 500)?;
    // Each time around, whether or not a page was in vain before.
    KSM.write("smart_scan", 0)?;
    KSM.write("run", 1)?;
    let window = Duration::from_millis(bench.size(100, 400) as u64);
    sleep(window);
    let mut values = Vec::new();
    for _ in 0..bench.size(3, 9) {
        bench.tell(KERNEL_HASH);
        let before = (KSM.number("pages_scanned")?, cpu_seconds()?);
        let ((), samples) = sampler.during(|| {
            sleep(window);
            Ok(())
        })?;
        let (scanned, taken) = (
            KSM.number("pages_scanned")? - before.0,
            cpu_seconds()? - before.1,
        );
        ensure!(
            scanned > 0 && samples.len() > 100,
            "ksmd scanned {scanned} pages in {window:?}, with {} samples",
            samples.len()
        );
        values.push(taken * 1e9 / scanned as f64 * symbols.share(&samples, HASH));
    }
    let merged = KSM.number("pages_sharing")?;
    ensure!(merged == 0, "{merged} pages equal others");
    ksmd::forget()?;
    bench.row(name(KERNEL_HASH, SMALL), Unit::NsPerPage, values)
}

fn cpu_seconds() -> Result<f64> {
    cpu::of_ksmd()?.context("ksmd's CPU time is not known")
}

/// Duplicates, merged once with samples and once without, as taking them takes time.
fn compare(bench: &mut Bench, symbols: &Symbols, sampler: &Sampler) -> Result<()> {
    let pages = 4 * TABLE_PAGES;
    let first = fresh(pages);
    let published = merged(pages, first)?;
    let merge = || -> Result<Duration> {
        let map = filled(pages, first)?;
        counting(Wanted::merge(pages), || timed_merge(&map, 0..pages))
    };
    let mut values = Vec::new();
    for warm in bench.rounds(bench.size(3, 15)) {
        let taken = merge()?.as_nanos() as f64 / pages as f64;
        let map = filled(pages, first)?;
        let (_, samples) = counting(Wanted::merge(pages), || {
            sampler.during(|| timed_merge(&map, 0..pages))
        })?;
        ensure!(samples.len() > 100, "{} samples", samples.len());
        if warm {
            values.push(taken * symbols.share(&samples, COMPARE));
        }
    }
    drop(published);
    settle()?;
    let inlined = values.iter().all(|value| *value == 0.0);
    bench.note(if inlined {
        format!("{KERNEL_COMPARE}: cannot be told apart, as {COMPARE} is no function of its own in this kernel")
    } else {
        format!("{KERNEL_COMPARE}: the time for a duplicate by the share of samples in {COMPARE}")
    });
    if inlined {
        return Ok(());
    }
    bench.row(name(KERNEL_COMPARE, SMALL), Unit::NsPerPage, values)
}
