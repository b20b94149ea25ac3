//! What a call costs, by its length.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::stay_on;
use sksm_guest::page::TABLE;
use sksm_records::bench::Unit;
use sksm_records::bench::names::{
    CLOCK, IN_ONE_CALL, MERGE, NOTHING, ONE_CALL, PUBLISH, WRITTEN_AGO, WRITTEN_BEFORE,
    WRITTEN_ELSEWHERE,
};

use crate::measure::{
    Bench, TABLE_PAGES, Wanted, affordable_pages, counting, filled, fresh, merged, name, settle,
    shortage, timed_merge,
};

/// How long the calls of one length may take, with all that belongs to them.
const PATIENCE: Duration = Duration::from_secs(90);

pub const GIB_PAGES: usize = (1 << 30) / 4096;

pub fn run(bench: &mut Bench) -> Result<()> {
    nothing(bench)?;
    single(bench)?;
    let small = bench.size(8, 40);
    for length in [1, 4, 16, 64, TABLE_PAGES] {
        parts(bench, length, small)?;
    }
    let mut page = Duration::ZERO;
    for length in [8 * TABLE_PAGES, 64 * TABLE_PAGES, GIB_PAGES, 4 * GIB_PAGES] {
        let why_not = if bench.quick && length > 8 * TABLE_PAGES {
            "to be quick"
        } else if affordable_pages(0)? < length + contents(length) {
            shortage()?
        } else if page * length as u32 > PATIENCE {
            "this machine is too slow"
        } else {
            page = whole(bench, length)?;
            continue;
        };
        bench.note(format!("calls over {length} pages: left out, {why_not}"));
    }
    Ok(())
}

/// What is in every figure here: reading the clock, and a call that does nothing.
fn nothing(bench: &mut Bench) -> Result<()> {
    let clock = || {
        let start = Instant::now();
        start.elapsed().as_nanos() as f64
    };
    let values = (0..500).map(|_| clock()).collect();
    bench.row(name(CLOCK, ""), Unit::Ns, values)?;
    let call = || -> Result<f64> {
        let start = Instant::now();
        let result = sksm::merge_exact(0, 0);
        let taken = start.elapsed().as_nanos() as f64;
        result?;
        Ok(taken)
    };
    let values = (0..500).map(|_| call()).collect::<Result<_>>()?;
    bench.row(name(NOTHING, ""), Unit::Ns, values)
}

/// One call for one page that has been written just before: it is in a batch of the LRU yet.
fn single(bench: &mut Bench) -> Result<()> {
    let pages = TABLE_PAGES;
    let first = fresh(pages);
    let _published = merged(pages, first)?;
    let samples = |map: &Map, write: &mut dyn FnMut(usize) -> Result<()>| -> Result<Vec<f64>> {
        counting(Wanted::merge(pages), || {
            let sample = |page| {
                write(page)?;
                Ok(timed_merge(map, page..page + 1)?.as_nanos() as f64)
            };
            (0..pages).map(sample).collect()
        })
    };
    let map = filled(pages, first)?;
    let values = samples(&map, &mut |_| Ok(()))?;
    bench.row(name(ONE_CALL, WRITTEN_AGO), Unit::NsPerPage, values)?;

    let map = Map::aligned(pages, TABLE, 0)?;
    let values = samples(&map, &mut |page| {
        map.fill(page, first + page as u64);
        Ok(())
    })?;
    bench.row(name(ONE_CALL, WRITTEN_BEFORE), Unit::NsPerPage, values)?;

    if std::thread::available_parallelism()?.get() < 2 {
        bench.note("a page that another CPU has written just before: there is no other");
        return Ok(());
    }
    let map = Map::aligned(pages, TABLE, 0)?;
    let values = std::thread::scope(|scope| -> Result<_> {
        let (ask, asked) = sync_channel(0);
        let (tell, told) = sync_channel(0);
        let map = &map;
        let writer = scope.spawn(move || -> Result<()> {
            stay_on(1)?;
            for page in asked {
                map.fill(page, first + page as u64);
                tell.send(())?;
            }
            Ok(())
        });
        let main = scope.spawn(move || -> Result<_> {
            stay_on(0)?;
            samples(map, &mut |page| {
                ask.send(page)?;
                Ok(told.recv()?)
            })
        });
        let values = main.join().expect("no panic");
        writer.join().expect("no panic")?;
        values
    })?;
    bench.row(name(ONE_CALL, WRITTEN_ELSEWHERE), Unit::NsPerPage, values)
}

/// Calls over parts of one page table.
fn parts(bench: &mut Bench, length: usize, repeats: usize) -> Result<()> {
    let pages = TABLE_PAGES;
    let calls = pages / length;
    let repeats = (repeats / calls).max(3);
    let samples = |map: &Map, wanted| counting(wanted, || by_calls(map, length));
    let first = fresh(pages);
    let published = merged(pages, first)?;
    let (mut publish, mut merge) = (Vec::new(), Vec::new());
    for warm in bench.rounds(repeats) {
        let map = filled(pages, fresh(pages))?;
        let new = samples(&map, Wanted::publish(pages))?;
        drop(map);
        settle()?;
        let map = filled(pages, first)?;
        let same = samples(&map, Wanted::merge(pages))?;
        ensure!(map.pfns()? == published.pfns()?, "equal pages apart");
        if warm {
            publish.extend(new);
            merge.extend(same);
        }
    }
    rows(bench, length, publish, merge)
}

/// Merges all of a map by calls of that length; returns nanoseconds a page, of each call.
pub fn by_calls(map: &Map, length: usize) -> Result<Vec<f64>> {
    let call = |first| {
        let taken = timed_merge(map, first..first + length)?;
        Ok(taken.as_nanos() as f64 / length as f64)
    };
    (0..map.pages()).step_by(length).map(call).collect()
}

/// How many contents there are to merge with in a call of that length: a map of 4 GiB is to fit into memory, but not twice.
fn contents(length: usize) -> usize {
    length.min(GIB_PAGES / 2)
}

/// Calls over many page tables. Returns how long all of it took for a page of a call.
fn whole(bench: &mut Bench, length: usize) -> Result<Duration> {
    let start = Instant::now();
    let repeats = if length > GIB_PAGES { 1 } else { 3 };
    let per_page = |taken: Duration| taken.as_nanos() as f64 / length as f64;
    let (mut publish, mut merge) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        bench.tell(PUBLISH);
        let map = filled(length, fresh(length))?;
        let taken = counting(Wanted::publish(length), || timed_merge(&map, 0..length))?;
        publish.push(per_page(taken));
        drop(map);
        settle()?;
        bench.tell(MERGE);
        let contents = contents(length);
        let first = fresh(contents);
        let _published = merged(contents, first)?;
        let map = Map::aligned(length, TABLE, 0)?;
        map.fill_all(|page| first + (page % contents) as u64);
        let taken = counting(Wanted::merge(length), || timed_merge(&map, 0..length))?;
        merge.push(per_page(taken));
    }
    settle()?;
    rows(bench, length, publish, merge)?;
    Ok(start.elapsed() / (repeats * length) as u32)
}

fn rows(bench: &mut Bench, length: usize, publish: Vec<f64>, merge: Vec<f64>) -> Result<()> {
    let name = |what| name(IN_ONE_CALL, what).at(length);
    bench.row(name(PUBLISH), Unit::NsPerPage, publish)?;
    bench.row(name(MERGE), Unit::NsPerPage, merge)
}
