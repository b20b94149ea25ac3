//! Writers that never stop while others merge: no write may get lost.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sksm_guest::memory::{Map, WORDS};
use sksm_guest::process::Child;
use sksm_guest::report::{Test, test};
use sksm_guest::sysfs::Counters;

pub const TESTS: &[Test] = &[
    test("writers/thread", || threads(1, 1)),
    test("writers/two-threads-two-mergers", || threads(2, 2)),
    test("writers/family", family),
    test("writers/reader-sees-no-step-back", reader),
];

/// How long each of these goes on. Thousands of rounds pass in that time even under software emulation.
const TIME: Duration = Duration::from_secs(3);
const PAGES: usize = 64;
/// Where the counter of a page stands: at both ends and in between, so that a mixture of two pages shows.
const PLACES: [usize; 3] = [0, 200, WORDS - 1];

/// Counts up in every page of this writer, and checks each counter before it writes the next value.
/// Pages of the same round are equal, so they merge all the time.
pub fn count(map: &Map, pages: impl Iterator<Item = usize> + Clone, round: u64) -> Result<()> {
    for page in pages {
        for place in PLACES {
            let found = map.get(page, place);
            ensure!(
                found == round,
                "page {page}, word {place}: wrote {round}, now it holds {found}"
            );
            map.put(page, place, round + 1);
        }
    }
    Ok(())
}

/// Runs `merging` and `work` at the same time, until `work` ends.
pub fn beside(
    mergers: usize,
    merging: impl Fn() -> Result<()> + Sync,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let merging = || {
        while !stop.load(Relaxed) {
            merging()?;
        }
        anyhow::Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..mergers).map(|_| scope.spawn(merging)).collect();
        let result = work();
        stop.store(true, Relaxed);
        for thread in threads {
            thread.join().expect("a merging thread panicked")?;
        }
        result
    })
}

fn threads(writers: usize, mergers: usize) -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[0; PAGES])?;
    beside(
        mergers,
        || map.merge(),
        || {
            std::thread::scope(|scope| {
                let writer = |number: usize| {
                    let map = &map;
                    move || {
                        let end = Instant::now() + TIME;
                        let mut round = 0;
                        while Instant::now() < end {
                            count(map, (number..PAGES).step_by(writers), round)?;
                            round += 1;
                        }
                        count(map, (number..PAGES).step_by(writers), round)
                    }
                };
                let threads: Vec<_> = (0..writers)
                    .map(|number| scope.spawn(writer(number)))
                    .collect();
                for thread in threads {
                    thread.join().expect("a writing thread panicked")?;
                }
                anyhow::Ok(())
            })
        },
    )?;
    let merged = start.change()?.pages_merged;
    ensure!(merged > 0, "nothing was merged meanwhile");
    Ok(())
}

/// Parent and children write to pages shared by fork while all of them merge.
fn family() -> Result<()> {
    let map = Map::filled(&[0; PAGES])?;
    let run = |rounds: std::ops::Range<u64>| {
        beside(
            1,
            || map.merge(),
            || {
                rounds
                    .into_iter()
                    .try_for_each(|round| count(&map, 0..PAGES, round))
            },
        )
    };
    run(0..20)?;
    for generation in 1..10 {
        let children =
            [0, 1, 2].map(|_| Child::spawn(|_| run(generation * 20..generation * 20 + 40)));
        run(generation * 20..generation * 20 + 20)?;
        for child in children {
            child?.join()?;
        }
    }
    Ok(())
}

/// A reader must never see a counter go back, which it would through a page that is no longer the writer's.
fn reader() -> Result<()> {
    let map = Map::filled(&[0; PAGES])?;
    beside(
        1,
        || map.merge(),
        || {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut seen = [0; PAGES];
                    while !stop.load(Relaxed) {
                        for (page, seen) in seen.iter_mut().enumerate() {
                            let now = map.get(page, 200);
                            ensure!(now >= *seen, "page {page}: read {now} after {seen}");
                            *seen = now;
                        }
                    }
                    Ok(())
                });
                let end = Instant::now() + TIME;
                let mut round = 0;
                let mut result = Ok(());
                while Instant::now() < end && result.is_ok() {
                    result = count(&map, 0..PAGES, round);
                    round += 1;
                }
                stop.store(true, Relaxed);
                reader.join().expect("the reading thread panicked")?;
                result
            })
        },
    )
}
