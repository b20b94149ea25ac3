//! Others of the same process go on while one merges much: a call does not keep the address space for itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use anyhow::{Result, ensure};
use sksm_guest::memory::{Map, PAGE, TABLE};
use sksm_guest::report::{Test, skip, test};
use sksm_guest::sysfs::Counters;

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

/// Another thread does something all the time, and must get to it again and again during a single merge. `step` tells how often
/// it has waited for the address space.
fn go_on(step: fn() -> Result<usize>) -> Result<()> {
    const PAGES: usize = 128 << 10;
    const WANTED: usize = 200;
    if std::thread::available_parallelism()?.get() == 1 {
        return skip("one CPU, which threads have in turns longer than a batch");
    }
    let batches = PAGES / BATCH;
    let map = Map::anon(PAGES)?;
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
    let meanwhile = std::thread::scope(|scope| {
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
    eprintln!("{meanwhile} calls while {batches} batches were merged");
    let published = start.change()?.pages_published as usize;
    ensure!(
        published > PAGES * 9 / 10,
        "only {published} were published"
    );
    ensure!(
        meanwhile >= WANTED,
        "{meanwhile} calls while {batches} batches were merged"
    );
    map.expect_all(id)
}
