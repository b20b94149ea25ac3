//! The same pages, merged by SKSM and by KSM: how long, how much CPU time, how many looks.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sksm_guest::harness::patience::PATIENCE;
use sksm_guest::machine::ksmd::{self, Tuning};
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_guest::memory::map::Map;
use sksm_records::bench::BesideKsm;
use sksm_records::ksmd::KsmEnd;
use sksm_records::statistics::Summary;

use crate::measure::{Bench, TABLE_PAGES, Wanted, counting, filled, fresh, settle, timed_merge};

pub fn run(bench: &mut Bench) -> Result<()> {
    if bench.instructions {
        bench.note("left out: a matter of time, not of instructions");
        return Ok(());
    }
    let contents = bench.size(1, 4) * TABLE_PAGES;
    let copies = bench.size(4, 8);
    let (pages, saved) = (contents * copies, contents * (copies - 1));
    let maps = || -> Result<Vec<Map>> {
        let first = fresh(contents);
        (0..copies).map(|_| filled(contents, first)).collect()
    };
    let mut times = Vec::new();
    let mut scanned = 0;
    for _ in 0..bench.size(3, 7) {
        let maps = maps()?;
        let before = SKSM.number("pages_scanned")?;
        let wanted = Wanted {
            scanned: pages,
            published: contents,
            merged: saved,
        };
        let taken = counting(wanted, || {
            let all = maps.iter().map(|map| timed_merge(map, 0..contents));
            all.sum::<Result<Duration>>()
        })?;
        times.push(taken.as_secs_f64());
        scanned = SKSM.number("pages_scanned")? - before;
        drop(maps);
        settle()?;
    }
    let mut runs = Vec::new();
    // What takes seconds by sleeping has nothing to spread.
    let tunings = std::iter::once(Tuning::Default)
        .chain(std::iter::repeat_n(Tuning::Unthrottled, bench.size(2, 5)));
    for tuning in tunings {
        let maps = maps()?;
        // What it counts of pages that have gone would pass for work done.
        ksmd::forget()?;
        for map in &maps {
            map.advise(libc::MADV_MERGEABLE)?;
        }
        let result = ksmd::run(tuning, saved as i64, PATIENCE, !bench.once, &|text| {
            eprintln!("ksm: {text}")
        })?;
        ensure!(
            result.end == KsmEnd::Reached,
            "ksmd did not save {saved} pages within {} s",
            result.seconds
        );
        ensure!(
            result.pages_scanned >= 2 * pages as i64,
            "ksmd cannot have merged {pages} pages with {} looks: this measures something else",
            result.pages_scanned
        );
        runs.push(result);
        ksmd::forget()?;
    }
    bench.note("KSM with its default tuning ran once: it sleeps most of its time");
    bench.note("ksmd is looked at every 200 ms, or 5 ms when unthrottled, and scans on until it is seen to have merged");
    bench.beside_ksm(BesideKsm {
        pages,
        saved,
        sksm_seconds: Summary::of(times).expect("several runs"),
        sksm_scanned: scanned,
        ksm: runs,
    });
    Ok(())
}

/// Two maps whose pages are the same ones, by KSM's doing.
pub fn twins(pages: usize) -> Result<(Map, Map)> {
    let first = fresh(pages);
    let maps = [filled(pages, first)?, filled(pages, first)?];
    merge(&maps)?;
    let [map, twin] = maps;
    ensure!(map.pfns()? == twin.pfns()?, "equal pages apart");
    Ok((map, twin))
}

/// Lets ksmd merge maps of equal contents, and forget all that it merged before.
pub fn merge(maps: &[Map]) -> Result<()> {
    for map in maps {
        map.advise(libc::MADV_MERGEABLE)?;
    }
    let pages: usize = maps.iter().skip(1).map(Map::pages).sum();
    // Its count of what has gone since falls only as it scans.
    ksmd::forget()?;
    KSM.write("pages_to_scan", 10_000)?;
    KSM.write("sleep_millisecs", 0)?;
    let scans = KSM.number("full_scans")?;
    let deadline = Instant::now() + PATIENCE;
    KSM.write("run", 1)?;
    // Three times around: a page is remembered, compared, merged.
    while KSM.number("pages_sharing")? < pages as i64 || KSM.number("full_scans")? - scans < 3 {
        ensure!(
            Instant::now() < deadline,
            "ksmd does not merge {pages} pages"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // What is merged stays merged.
    KSM.write("run", 0)
}
