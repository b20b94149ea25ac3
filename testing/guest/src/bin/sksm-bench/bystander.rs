//! A thread that maps and unmaps memory while another of its process merges: how long it waits for the address space.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::stay_on;
use sksm_records::bench::Unit;
use sksm_records::bench::names::{AT_REST, MAP_AND_UNMAP, WHILE_MERGING};

use crate::calls::GIB_PAGES;
use crate::measure::{Bench, TABLE_PAGES, affordable_pages, filled, fresh, name};

/// The figures of a round: so many of the calls took no longer.
const PARTS: [f64; 3] = [0.5, 0.99, 1.0];

pub fn run(bench: &mut Bench) -> Result<()> {
    if thread::available_parallelism()?.get() == 1 {
        bench.note("one CPU: the two threads would only take turns");
        return Ok(());
    }
    let enough = !bench.quick && affordable_pages(0)? >= 2 * GIB_PAGES;
    let pages = if enough { GIB_PAGES } else { 8 * TABLE_PAGES };
    bench.note(format!("each merge publishes {pages} pages"));
    let mut figures = [AT_REST, WHILE_MERGING].map(|names| names.map(|name| (name, Vec::new())));
    for warm in bench.rounds(bench.size(2, 3)) {
        let map = filled(pages, fresh(pages))?;
        let (merging, took) = beside(|| map.merge())?;
        let (rest, _) = beside(|| {
            thread::sleep(took);
            Ok(())
        })?;
        for (figures, mut times) in figures.iter_mut().zip([rest, merging]) {
            times.sort_unstable();
            for ((_, values), part) in figures.iter_mut().zip(PARTS).filter(|_| warm) {
                let at = (times.len() as f64 * part).ceil() as usize;
                values.push(times[at - 1].as_nanos() as f64);
            }
        }
        bench.tell(MAP_AND_UNMAP);
    }
    for (variant, values) in figures.into_iter().flatten() {
        bench.row(name(MAP_AND_UNMAP, variant), Unit::Ns, values)?;
    }
    Ok(())
}

/// Does `work` on one CPU; returns how long each mmap() with its munmap() took on another meanwhile, one at least, and how
/// long the work did.
fn beside(work: impl FnOnce() -> Result<()> + Send) -> Result<(Vec<Duration>, Duration)> {
    let (begun, ended) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        let other = scope.spawn(move || {
            stay_on(1)?;
            let mut times = Vec::new();
            loop {
                let start = Instant::now();
                drop(Map::anon(2)?);
                times.push(start.elapsed());
                if ended.load(Ordering::Relaxed) {
                    return anyhow::Ok(times);
                }
                if !begun.load(Ordering::Relaxed) {
                    times.clear();
                }
            }
        });
        let caller = scope.spawn(move || {
            stay_on(0)?;
            let start = Instant::now();
            begun.store(true, Ordering::Relaxed);
            work()?;
            anyhow::Ok(start.elapsed())
        });
        let took = caller.join().expect("no panic");
        ended.store(true, Ordering::Relaxed);
        let times = other.join().expect("no panic")?;
        Ok((times, took?))
    })
}
