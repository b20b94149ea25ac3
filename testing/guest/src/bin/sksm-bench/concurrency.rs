//! Several processes that merge at the same time.

use std::hint::black_box;
use std::slice;
use std::time::Instant;

use anyhow::Result;
use sksm_guest::memory::file::memfd;
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::process::{Child, Gate};
use sksm_guest::page::PAGE;
use sksm_records::bench::Unit;
use sksm_records::bench::names::{
    DIFFERENT, DISTURBED, HASHED, ONE_FOR_TWO, PUBLISH, RACE, SAME, TASKS,
};
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
    let mut rows = |what, wanted: Expect, contents: Contents, work: Work| -> Result<()> {
        for (tasks, variant) in TASKS {
            let name = name(what, variant);
            bench.repeated(name, Unit::PagesPerSecond, repeats, || {
                let contents: Vec<_> = contents(tasks)
                    .into_iter()
                    .map(|first| vec![first])
                    .collect();
                let rate = counting(wanted(tasks), || together(&contents, pages, work))?;
                settle()?;
                Ok(rate)
            })?;
        }
        Ok(())
    };
    let different = |tasks| -> Vec<u64> {
        let of_task = |task| first + (task * pages) as u64;
        (0..tasks).map(of_task).collect()
    };
    let same = |tasks| vec![first; tasks];
    let new = |tasks| -> Vec<u64> { (0..tasks).map(|_| fresh(pages)).collect() };
    let new_and_same = |tasks| vec![fresh(pages); tasks];
    let merged = |tasks| Wanted::merge(tasks * pages);
    let published = |tasks| Wanted::publish(tasks * pages);
    let published_once = |tasks| Wanted {
        scanned: tasks * pages,
        published: pages,
        merged: (tasks - 1) * pages,
    };
    rows(HASHED, &|_| Wanted::default(), &different, hash)?;
    rows(DIFFERENT, &merged, &different, merge)?;
    rows(SAME, &merged, &same, merge)?;
    rows(PUBLISH, &published, &new, merge)?;
    rows(RACE, &published_once, &new_and_same, merge)?;
    let disturbers = [disturb()?, disturb()?];
    rows(DISTURBED, &merged, &different, merge)?;
    for disturber in disturbers {
        disturber.kill();
        disturber.ended()?;
    }
    bench.repeated(
        name(RACE, ONE_FOR_TWO),
        Unit::PagesPerSecond,
        repeats,
        || {
            let contents = vec![fresh(pages); 2];
            let rate = counting(published_once(2), || together(&[contents], pages, merge))?;
            settle()?;
            Ok(rate)
        },
    )
}

/// The first content of each of so many tasks, asked for anew each time.
type Contents<'a> = &'a dyn Fn(usize) -> Vec<u64>;

/// What the engine is to do for so many tasks.
type Expect<'a> = &'a dyn Fn(usize) -> Wanted;

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

/// A task for each of these, all at the same time; each has memory for each of its contents and those that follow, and goes
/// from one to the next. Returns how many pages a second they did together.
fn together(contents: &[Vec<u64>], pages: usize, work: Work) -> Result<f64> {
    // The clock is the same in all processes.
    let epoch = Instant::now();
    let gate = Gate::closed()?;
    let spawn = |contents: &Vec<u64>| {
        Child::spawn(|parent| {
            let filled = |first: &u64| filled(pages, *first);
            let maps = contents.iter().map(filled).collect::<Result<Vec<_>>>()?;
            parent.go()?;
            gate.wait()?;
            let start = epoch.elapsed();
            maps.iter().try_for_each(|map| work(map, pages))?;
            parent.send(start.as_nanos() as u64)?;
            parent.send(epoch.elapsed().as_nanos() as u64)?;
            parent.pause()
        })
    };
    let children = contents.iter().map(spawn).collect::<Result<Vec<_>>>()?;
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
    let contents: usize = contents.iter().map(Vec::len).sum();
    Ok((contents * pages) as f64 * 1e9 / (end - start) as f64)
}

/// A process that for ever touches new pages, and copies pages of a file by writing to them.
fn disturb() -> Result<Child> {
    let pages = TABLE_PAGES;
    let child = Child::spawn(|parent| {
        let file = memfd(pages)?;
        let copied = Map::new(pages, WRITE, libc::MAP_PRIVATE, Some(&file))?;
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
