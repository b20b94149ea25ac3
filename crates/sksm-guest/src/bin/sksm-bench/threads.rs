//! Calls of a process whose other threads run on other CPUs: they have entries of their own in their TLBs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use sksm_guest::bench::Unit;
use sksm_guest::bench::names::{ONE_CALL, OTHER_FLUSHES, OWN_FLUSHES, TABLE_IN_ONE_CALL, THREADS};
use sksm_guest::process::stay_on;
use sksm_guest::tracefs::Trace;

use crate::flushes;
use crate::measure::{
    Bench, TABLE_PAGES, Wanted, counting, filled, fresh, merged, name, timed_merge,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    if cpus < 2 {
        bench.note("one CPU: other threads would only take turns with the call");
        return Ok(());
    }
    let trace = flushes::trace()?;
    if trace.is_none() {
        bench.note("TLB flushes: no trace event tells");
    }
    let trace = trace.as_ref();
    let stop = &AtomicBool::new(false);
    for (others, variant) in THREADS {
        stop.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            for other in 0..others {
                scope.spawn(move || {
                    // The first CPU is the caller's.
                    let placed = stay_on(1 + other % (cpus - 1));
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    placed
                });
            }
            let caller = scope.spawn(|| {
                stay_on(0)?;
                measure(bench, variant, trace)
            });
            let result = caller.join().expect("no panic");
            stop.store(true, Ordering::Relaxed);
            result
        })?;
    }
    Ok(())
}

fn measure(bench: &mut Bench, variant: &str, trace: Option<&Trace>) -> Result<()> {
    let pages = TABLE_PAGES;
    let first = fresh(pages);
    let published = merged(pages, first)?;
    let repeats = bench.size(5, 25);
    bench.per_page(name(TABLE_IN_ONE_CALL, variant), pages, repeats, || {
        let map = filled(pages, first)?;
        counting(Wanted::merge(pages), || timed_merge(&map, 0..pages))
    })?;
    let map = filled(pages, first)?;
    let values = counting(Wanted::merge(pages), || {
        let single = |page| Ok(timed_merge(&map, page..page + 1)?.as_nanos() as f64);
        (0..pages).map(single).collect::<Result<Vec<_>>>()
    })?;
    bench.row(name(ONE_CALL, variant), Unit::NsPerPage, values)?;
    drop(published);
    let Some(trace) = trace else {
        return Ok(());
    };
    let (mut own, mut remote) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let first = fresh(pages);
        let _published = merged(pages, first)?;
        let map = filled(pages, first)?;
        let flushes = counting(Wanted::merge(pages), || {
            flushes::during(trace, || map.merge())
        })?;
        own.push(flushes.own as f64);
        remote.push(flushes.remote as f64);
    }
    bench.row(name(OWN_FLUSHES, variant), Unit::Count, own)?;
    bench.row(name(OTHER_FLUSHES, variant), Unit::Count, remote)
}
