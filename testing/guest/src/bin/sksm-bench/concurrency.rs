//! Several processes that merge at the same time.

use std::hint::black_box;
use std::slice;
use std::time::Instant;

use anyhow::{Context, Result};
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
    let of_tasks = |(tasks, name)| Variant {
        tasks,
        parts: tasks,
        name,
    };
    let plain = TASKS.map(of_tasks).to_vec();
    let mut races = plain.clone();
    races.insert(
        1,
        Variant {
            tasks: 1,
            parts: 2,
            name: ONE_FOR_TWO,
        },
    );
    // In turn: a machine that is slower for a while is so for all.
    let mut rows = |what, variants: &[Variant], wanted: Expect, contents: Contents, work: Work| {
        bench.tell(what);
        let mut values = vec![Vec::new(); variants.len()];
        for warm in bench.rounds_of(variants.len(), repeats) {
            for (variant, values) in variants.iter().zip(&mut values) {
                let Variant { tasks, parts, name } = *variant;
                let contents = contents(parts);
                let rate = counting(wanted(parts), || together(tasks, &contents, pages, work))
                    .with_context(|| format!("{what}, {name}"))?;
                settle()?;
                if warm {
                    values.push(rate);
                }
            }
        }
        for (variant, values) in variants.iter().zip(values) {
            bench.row(name(what, variant.name), Unit::PagesPerSecond, values)?;
        }
        anyhow::Ok(())
    };
    let different = |parts| -> Vec<u64> {
        let of_part = |part| first + (part * pages) as u64;
        (0..parts).map(of_part).collect()
    };
    let same = |parts| vec![first; parts];
    let new = |parts| -> Vec<u64> { (0..parts).map(|_| fresh(pages)).collect() };
    let new_and_same = |parts| vec![fresh(pages); parts];
    let merged = |parts| Wanted::merge(parts * pages);
    let published = |parts| Wanted::publish(parts * pages);
    let published_once = |parts| Wanted {
        scanned: parts * pages,
        published: pages,
        merged: (parts - 1) * pages,
    };
    rows(HASHED, &plain, &|_| Wanted::default(), &different, hash)?;
    rows(DIFFERENT, &plain, &merged, &different, merge)?;
    rows(SAME, &plain, &merged, &same, merge)?;
    rows(PUBLISH, &plain, &published, &new, merge)?;
    rows(RACE, &races, &published_once, &new_and_same, merge)?;
    let disturbers = [disturb()?, disturb()?];
    rows(DISTURBED, &plain, &merged, &different, merge)?;
    for disturber in disturbers {
        disturber.kill();
        disturber.ended()?;
    }
    Ok(())
}

/// Who does the work of a row.
#[derive(Clone, Copy)]
struct Variant {
    tasks: usize,
    /// Of memory, which the tasks share out among themselves.
    parts: usize,
    name: &'static str,
}

/// The first content of each of so many parts, asked for anew each time.
type Contents<'a> = &'a dyn Fn(usize) -> Vec<u64>;

/// What the engine is to do for so many parts.
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

/// So many tasks at the same time, which share out memory in parts, each with one of these contents and those that follow, and go
/// through theirs one after the other. Returns how many pages a second they did together.
fn together(tasks: usize, contents: &[u64], pages: usize, work: Work) -> Result<f64> {
    // The clock is the same in all processes.
    let epoch = Instant::now();
    let gate = Gate::closed()?;
    let spawn = |contents: &[u64]| {
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
    let children = contents
        .chunks(contents.len() / tasks)
        .map(spawn)
        .collect::<Result<Vec<_>>>()?;
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
    Ok((contents.len() * pages) as f64 * 1e9 / (end - start) as f64)
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
