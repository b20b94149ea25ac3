//! Writers that never stop while others merge: no write may get lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::page::WORDS;

use crate::expect::merging;

pub const TESTS: &[Test] = &[
    test("writers/thread", || threads(1, 1)),
    test("writers/two-threads-two-mergers", || threads(2, 2)),
    test("writers/family", family),
    test("writers/reader-sees-no-step-back", reader),
];

/// How long tests of this kind go on: hundreds of rounds even under software emulation.
const TIME: Duration = Duration::from_secs(3);

/// Does the work again and again, numbering the rounds.
pub fn for_a_while(work: impl FnMut(u64) -> Result<()>) -> Result<()> {
    for_a_while_until(|| true, work)
}

/// The same, and longer where what is to happen meanwhile has not been `seen` by then: others may have had all of the machine.
pub fn for_a_while_until(
    seen: impl Fn() -> bool,
    work: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let (end, deadline) = (Instant::now() + TIME, deadline());
    let goes_on = |now: Instant| now < end || (!seen() && now < deadline);
    (0..)
        .take_while(|round| *round == 0 || goes_on(Instant::now()))
        .try_for_each(work)
}

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

/// Runs `merging` again and again while `work` runs. `work` is told how often that was done.
pub fn beside(
    mergers: usize,
    merging: impl Fn() -> Result<()> + Sync,
    work: impl FnOnce(&AtomicUsize) -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let done = AtomicUsize::new(0);
    let merging = || {
        while !stop.load(Relaxed) {
            // After an error nobody needs to wait for more.
            merging().inspect_err(|_| done.store(usize::MAX / 2, Relaxed))?;
            done.fetch_add(1, Relaxed);
        }
        anyhow::Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..mergers).map(|_| scope.spawn(merging)).collect();
        let result = work(&done);
        stop.store(true, Relaxed);
        for thread in threads {
            thread.join().expect("a merging thread panicked")?;
        }
        result
    })
}

fn threads(writers: usize, mergers: usize) -> Result<()> {
    let map = Map::filled(&[0; PAGES])?;
    let write =
        |number: usize| for_a_while(|round| count(&map, (number..PAGES).step_by(writers), round));
    let write_all = |_: &AtomicUsize| {
        std::thread::scope(|scope| {
            let start = |number| scope.spawn(move || write(number));
            let threads: Vec<_> = (0..writers).map(start).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("a writing thread panicked"))
        })
    };
    merging(|| beside(mergers, || map.merge(), write_all))
}

/// Parent and children write to pages shared by fork while all of them merge.
fn family() -> Result<()> {
    let map = Map::filled(&[0; PAGES])?;
    // Counts on from `first` until some merges were done, and tells how far it came.
    let run = |first: u64| {
        let mut round = first;
        beside(
            1,
            || map.merge(),
            |done| {
                while round < first + 20 || done.load(Relaxed) < 10 {
                    count(&map, 0..PAGES, round)?;
                    round += 1;
                }
                Ok(())
            },
        )?;
        anyhow::Ok(round)
    };
    merging(|| {
        let mut round = run(0)?;
        for _ in 0..10 {
            let children = [0, 1, 2].map(|_| Child::spawn(|_| run(round).map(drop)));
            round = run(round)?;
            for child in children {
                child?.join()?;
            }
        }
        Ok(())
    })
}

/// A reader must never see a counter go back, which it would through a page that is no longer the writer's.
fn reader() -> Result<()> {
    let map = Map::filled(&[0; PAGES])?;
    let stop = AtomicBool::new(false);
    let read = || {
        let mut seen = [0; PAGES];
        while !stop.load(Relaxed) {
            for (page, seen) in seen.iter_mut().enumerate() {
                let now = map.get(page, 200);
                ensure!(now >= *seen, "page {page}: read {now} after {seen}");
                *seen = now;
            }
        }
        anyhow::Ok(())
    };
    let write = |_: &AtomicUsize| {
        std::thread::scope(|scope| {
            let reader = scope.spawn(read);
            let result = for_a_while(|round| count(&map, 0..PAGES, round));
            stop.store(true, Relaxed);
            reader.join().expect("the reading thread panicked")?;
            result
        })
    };
    merging(|| beside(1, || map.merge(), write))
}
