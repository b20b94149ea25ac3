//! Several processes that merge at the same time.

use std::hint::black_box;
use std::slice;
use std::time::Instant;

use anyhow::Result;
use sksm_guest::bench::Unit;
use sksm_guest::bench::names::{DIFFERENT, DISTURBED, HASHED, PUBLISH, SAME, TASKS};
use sksm_guest::memory::{self, Map, PAGE};
use sksm_guest::process::{Child, Gate};
use twox_hash::XxHash64;

use crate::measure::{
    Bench, TABLE_PAGES, Wanted, counting, filled, fresh, merged, name, settle, timed_merge,
};

const MOST: usize = TASKS[TASKS.len() - 1].0;

pub fn run(bench: &mut Bench) -> Result<()> {
    if bench.instructions {
        bench.note("left out: a matter of time, not of instructions");
        return Ok(());
    }
    let cpus = std::thread::available_parallelism()?.get();
    if cpus == 1 {
        bench.note("one CPU: tasks take turns, so more of them cannot do more");
    } else if cpus < MOST {
        bench.note(format!("{MOST} tasks share {cpus} CPUs"));
    }
    let pages = bench.size(2, 8) * TABLE_PAGES;
    let repeats = bench.size(3, 9);
    let first = fresh(MOST * pages);
    let _published = merged(MOST * pages, first)?;
    for (tasks, variant) in TASKS {
        let mut row = |what, wanted, contents: &dyn Fn(usize) -> u64, work: Work| -> Result<()> {
            bench.tell(what);
            let mut rates = Vec::new();
            for warm in bench.rounds(repeats) {
                let rate = counting(wanted, || together(tasks, pages, contents, work))?;
                settle()?;
                if warm {
                    rates.push(rate);
                }
            }
            bench.row(name(what, variant), Unit::PagesPerSecond, rates)
        };
        let different = |task| first + (task * pages) as u64;
        row(HASHED, Wanted::default(), &different, hash)?;
        row(DIFFERENT, Wanted::merge(tasks * pages), &different, merge)?;
        row(SAME, Wanted::merge(tasks * pages), &|_| first, merge)?;
        row(
            PUBLISH,
            Wanted::publish(tasks * pages),
            &|_| fresh(pages),
            merge,
        )?;
        let disturbers = [disturb()?, disturb()?];
        let mut rates = Vec::new();
        for warm in bench.rounds(repeats) {
            let wanted = Wanted::merge(tasks * pages);
            let rate = counting(wanted, || together(tasks, pages, &different, merge))?;
            if warm {
                rates.push(rate);
            }
        }
        for disturber in disturbers {
            disturber.kill();
            disturber.ended()?;
        }
        bench.row(name(DISTURBED, variant), Unit::PagesPerSecond, rates)?;
    }
    Ok(())
}

/// What each task does with its memory.
type Work = fn(&Map, usize) -> Result<()>;

fn merge(map: &Map, pages: usize) -> Result<()> {
    timed_merge(map, 0..pages)?;
    Ok(())
}

/// Shares nothing with anybody: what more tasks can bring at most on this machine.
fn hash(map: &Map, pages: usize) -> Result<()> {
    // SAFETY: The mapping is readable and that long, and nobody writes to it meanwhile.
    let bytes = unsafe { slice::from_raw_parts(map.addr() as *const u8, pages * PAGE) };
    for page in bytes.chunks(PAGE) {
        black_box(XxHash64::oneshot(0, page));
    }
    Ok(())
}

/// All tasks work at the same time; returns how many pages a second they did together.
fn together(tasks: usize, pages: usize, first: &dyn Fn(usize) -> u64, work: Work) -> Result<f64> {
    // The clock is the same in all processes.
    let epoch = Instant::now();
    let gate = Gate::closed()?;
    let spawn = |task| {
        let first = first(task);
        Child::spawn(|parent| {
            let map = filled(pages, first)?;
            parent.go()?;
            gate.wait()?;
            let start = epoch.elapsed();
            work(&map, pages)?;
            parent.send(start.as_nanos() as u64)?;
            parent.send(epoch.elapsed().as_nanos() as u64)?;
            parent.pause()
        })
    };
    let children = (0..tasks).map(spawn).collect::<Result<Vec<_>>>()?;
    children.iter().try_for_each(|child| child.pause())?;
    gate.open()?;
    let (mut start, mut end) = (u64::MAX, 0);
    for child in &children {
        start = start.min(child.receive()?);
        end = end.max(child.receive()?);
    }
    for child in children {
        child.go()?;
        child.join()?;
    }
    Ok((tasks * pages) as f64 * 1e9 / (end - start) as f64)
}

/// A process that for ever touches new pages, and copies pages of a file by writing to them.
fn disturb() -> Result<Child> {
    let pages = TABLE_PAGES;
    let child = Child::spawn(|parent| {
        let file = memory::memfd(pages)?;
        let copied = Map::new(pages, memory::WRITE, libc::MAP_PRIVATE, Some(&file))?;
        parent.go()?;
        loop {
            let new = Map::anon(pages)?;
            for page in 0..pages {
                copied.get(page, 0);
                copied.put(page, 0, page as u64);
                new.put(page, 0, page as u64);
            }
            copied.advise(libc::MADV_DONTNEED)?;
        }
    })?;
    child.pause()?;
    Ok(child)
}
