//! Others of the same process go on while one merges much: a call does not keep the address space for itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use anyhow::{Result, bail, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::map::Map;
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::skip::skip;

pub const TESTS: &[Test] = &[
    test("bystanders/mmap-goes-on", || go_on(map_and_unmap)),
    test("bystanders/page-faults-go-on", || {
        go_on(map_touch_and_unmap)
    }),
];

/// A page table is a batch.
const BATCH: usize = TABLE / PAGE;

/// A call each of two that take the address space for themselves.
fn map_and_unmap() -> Result<usize> {
    Map::anon(2).map(|_| 2)
}

/// Those, and a fault between them.
fn map_touch_and_unmap() -> Result<usize> {
    let map = Map::anon(2)?;
    map.put(1, 0, 1);
    Ok(3)
}

/// Another thread does something all the time, and gets to it while a merge goes on, not only before and after. Where others have
/// the CPUs it may have little time in one merge, but not in each of many.
fn go_on(step: fn() -> Result<usize>) -> Result<()> {
    const TRIES: usize = 20;
    /// More than what waits before a merge and after it.
    const WANTED: usize = 20;
    if std::thread::available_parallelism()?.get() == 1 {
        return skip("one CPU, which threads have in turns longer than a batch");
    }
    let pages = quarter_where_slow(128 << 10)?;
    let mut most = 0;
    for _ in 0..TRIES {
        most = most.max(calls_while_merging(pages, step)?);
        if most >= WANTED {
            return Ok(());
        }
    }
    bail!(
        "at most {most} calls while {} batches were merged",
        pages / BATCH
    )
}

/// How often, while that many pages are merged, another thread has waited for the address space. `step` tells how often it does
/// each time.
fn calls_while_merging(pages: usize, step: fn() -> Result<usize>) -> Result<usize> {
    let map = Map::anon(pages)?;
    map.no_huge();
    let id = |page: usize| 1 + page as u64;
    map.fill_all(id);
    let start = Counters::now()?;
    let (merging, done) = (AtomicBool::new(true), AtomicUsize::new(0));
    let other = || {
        while merging.load(Relaxed) {
            let steps = step()?;
            // What began before the end and ended after it does not count.
            if merging.load(Relaxed) {
                done.fetch_add(steps, Relaxed);
            }
        }
        anyhow::Ok(())
    };
    let calls = std::thread::scope(|scope| {
        let other = scope.spawn(other);
        // It is at work before the merge begins.
        while done.load(Relaxed) == 0 && !other.is_finished() {
            std::thread::yield_now();
        }
        let before = done.load(Relaxed);
        let result = map.merge();
        let after = done.load(Relaxed);
        merging.store(false, Relaxed);
        other.join().expect("the other thread panicked")?;
        result.map(|()| after - before)
    })?;
    eprintln!("{calls} calls while {} batches were merged", pages / BATCH);
    let published = start.change()?.pages_published as usize;
    ensure!(
        published > pages * 9 / 10,
        "only {published} were published"
    );
    map.expect_all(id)?;
    Ok(calls)
}
