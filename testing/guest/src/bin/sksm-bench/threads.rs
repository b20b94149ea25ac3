//! Calls of a process whose other threads run on other CPUs: they have entries of their own in their TLBs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use sksm_guest::machine::tracefs::Trace;
use sksm_guest::memory::process::stay_on;
use sksm_records::bench::Unit;
use sksm_records::bench::names::{OTHER_FLUSHES, OWN_FLUSHES, THREADS, WITH_THREADS};

use crate::calls::{GIB_PAGES, by_calls};
use crate::flushes;
use crate::measure::{
    Bench, TABLE_PAGES, Wanted, affordable_pages, counting, filled, fresh, merged, name, shortage,
};

/// Whose length, whose threads, and how often a call flushed its own TLB and others.
type Counts = (usize, &'static str, [Vec<f64>; 2]);

pub fn run(bench: &mut Bench) -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    bench.note(match cpus {
        1 => "one CPU: other threads would only take turns with the call".to_owned(),
        2 => "2 CPUs: the call has CPU 0, and all other threads share CPU 1".to_owned(),
        _ => format!(
            "the call has CPU 0, and other threads share the other {} CPUs",
            cpus - 1
        ),
    });
    let trace = flushes::trace()?;
    if trace.is_none() {
        bench.note("TLB flushes: no trace event tells");
    }
    let long = longest(bench)?;
    // One row of contents is enough for all.
    let first = fresh(long);
    let _published = merged(long, first)?;
    let mut counts: Vec<Counts> = Vec::new();
    for length in [1, 16, TABLE_PAGES, long] {
        for (others, variant) in THREADS {
            if others == 0 || cpus > 1 {
                let flushes = beside(others, cpus, || {
                    measure(bench, length, variant, first, trace.as_ref())
                })?;
                counts.push((length, variant, flushes));
            }
        }
    }
    for (index, what) in [OWN_FLUSHES, OTHER_FLUSHES].into_iter().enumerate() {
        for (length, variant, flushes) in &counts {
            if trace.is_some() {
                let values = flushes[index].clone();
                bench.row(name(what, variant).at(*length), Unit::Count, values)?;
            }
        }
    }
    Ok(())
}

/// 1 GiB, if that may be and can be.
fn longest(bench: &mut Bench) -> Result<usize> {
    let why_not = if bench.quick {
        "to be quick"
    } else if affordable_pages(0)? < 2 * GIB_PAGES {
        shortage()?
    } else {
        return Ok(GIB_PAGES);
    };
    bench.note(format!("calls over 1 GiB: fewer pages, {why_not}"));
    Ok(8 * TABLE_PAGES)
}

/// Does something on the first CPU while other threads of this process keep the other CPUs busy.
fn beside<T: Send>(
    others: usize,
    cpus: usize,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        for other in 0..others {
            scope.spawn(move || {
                let placed = stay_on(1 + other % (cpus - 1));
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                placed
            });
        }
        let caller = scope.spawn(|| {
            stay_on(0)?;
            work()
        });
        let result = caller.join().expect("no panic");
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Calls of that length; returns how often one of them flushed its own TLB, and others.
fn measure(
    bench: &mut Bench,
    length: usize,
    variant: &str,
    first: u64,
    trace: Option<&Trace>,
) -> Result<[Vec<f64>; 2]> {
    let pages = length.max(TABLE_PAGES);
    let calls = pages / length;
    let mut flushes = [Vec::new(), Vec::new()];
    let mut once = |trace: Option<&Trace>| -> Result<Vec<f64>> {
        let map = filled(pages, first)?;
        counting(Wanted::merge(pages), || {
            let Some(trace) = trace else {
                return by_calls(&map, length);
            };
            let (times, found) = flushes::during(trace, || by_calls(&map, length))?;
            for (values, found) in flushes.iter_mut().zip([found.own, found.remote]) {
                values.push(found as f64 / calls as f64);
            }
            Ok(times)
        })
    };
    let mut values = Vec::new();
    if length > TABLE_PAGES {
        // Such a call takes seconds with all that belongs to it, and no longer for being traced.
        for _ in 0..2 {
            values.extend(once(trace)?);
            bench.tell(WITH_THREADS);
        }
    } else {
        for warm in bench.rounds(bench.size(5, 25).div_ceil(calls)) {
            let times = once(None)?;
            if warm {
                values.extend(times);
            }
        }
        for _ in 0..if trace.is_some() { 3 } else { 0 } {
            once(trace)?;
        }
    }
    bench.row(
        name(WITH_THREADS, variant).at(length),
        Unit::NsPerPage,
        values,
    )?;
    Ok(flushes)
}
