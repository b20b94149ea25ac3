//! Failing allocations: a merge says so at most, keeps what it has done, and leaks nothing.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use libc::EAGAIN;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::machine::system;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, before_others, stay_on_one_cpu};
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::skip::skip;

use crate::expect::{copies, errno};

pub const TESTS: &[Test] = &[
    test("faults/one-by-one", || {
        sweep(|nth, faults| {
            let (map, contents) = pages(nth)?;
            merged_after(faults, nth, &map, contents, |page| id(nth, page))
        })
    }),
    test("faults/insertion", insertion),
    test("faults/one-by-one-of-a-huge-page", || sweep(of_huge_page)),
    test("faults/one-by-one-of-another-process", || {
        // process_madvise() tells how far it has come, and it comes to the end.
        refused(of_another_process).map(drop)
    }),
    test("faults/index-cannot-grow", index_cannot_grow),
    test("faults/at-random", at_random),
    test("faults/at-random-in-three-processes", || {
        needed()?;
        let children = [0, 1, 2].map(|_| Child::spawn(|_| at_random()));
        children.into_iter().try_for_each(|child| child?.join())
    }),
];

const DEBUG: &str = "/sys/kernel/debug";
const KINDS: [&str; 2] = ["failslab", "fail_page_alloc"];

fn set(kind: &str, file: &str, value: &str) -> Result<()> {
    let path = format!("{DEBUG}/{kind}/{file}");
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
}

/// Sets faults up for allocations of all kinds; they happen where they are asked for.
fn needed() -> Result<()> {
    if !fs::exists(format!("{DEBUG}/failslab"))? || !fs::exists("/proc/thread-self/fail-nth")? {
        return skip(
            "no fault injection in this kernel (CONFIG_FAILSLAB, CONFIG_FAULT_INJECTION_DEBUG_FS)",
        );
    }
    for kind in KINDS {
        set(kind, "ignore-gfp-wait", "N")?;
        set(kind, "verbose", "0")?;
    }
    // Pages by themselves too, which are left out by default. Those of user memory still are.
    set("fail_page_alloc", "min-order", "0")
}

const PAGES: usize = 96;

/// Some contents often, so that reverse maps grow, and some once.
fn id(seed: u64, page: usize) -> u64 {
    seed * 1000
        + match page % 4 {
            0 => page as u64,
            1 => 1,
            _ => 2 + page as u64 / 32,
        }
}

fn contents(seed: u64) -> usize {
    (0..PAGES)
        .map(|page| id(seed, page))
        .collect::<HashSet<_>>()
        .len()
}

fn pages(seed: u64) -> Result<(Map, usize)> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(|page| id(seed, page));
    Ok((map, contents(seed)))
}

/// Lets one allocation of this thread fail.
struct FailNth(File);

impl FailNth {
    /// Opened once: opening would allocate, and fail in the merge's place.
    fn open() -> Result<Self> {
        const FILE: &str = "/proc/thread-self/fail-nth";
        let file = OpenOptions::new().read(true).write(true).open(FILE);
        Ok(Self(file.context(FILE)?))
    }

    /// The error number of `work` whose nth allocation fails, and whether it came to that.
    fn during(&self, nth: u64, work: impl FnOnce() -> i32) -> Result<(i32, bool)> {
        let mut left = [0; 8];
        self.0.write_all_at(nth.to_string().as_bytes(), 0)?;
        let result = work();
        // The file tells how many more allocations it takes until the failure; 0 after it.
        let read = self.0.read_at(&mut left, 0)?;
        self.0.write_all_at(b"0", 0)?;
        Ok((result, left[..read].trim_ascii() == b"0"))
    }
}

/// Makes each allocation of a merge fail in turn, which shows at least once. `merge` tells how it ended, as [`FailNth::during`] does.
fn sweep(merge: impl FnMut(u64, &FailNth) -> Result<(i32, bool)>) -> Result<()> {
    ensure!(refused(merge)? > 0, "no failure has shown");
    Ok(())
}

/// The same, whether it shows or not; returns how many merges were refused.
fn refused(mut merge: impl FnMut(u64, &FailNth) -> Result<(i32, bool)>) -> Result<u32> {
    needed()?;
    let faults = FailNth::open()?;
    let mut refused = 0;
    for nth in 1..5000 {
        let (result, injected) =
            merge(nth, &faults).with_context(|| format!("allocation {nth} failed"))?;
        ensure!(
            result == 0 || result == EAGAIN && injected,
            "allocation {nth} failed: error {result}"
        );
        refused += u32::from(result == EAGAIN);
        if !injected {
            eprintln!(
                "{} allocations failed, {refused} merges were refused",
                nth - 1
            );
            ensure!(nth > 1, "nothing was allocated");
            return Ok(refused);
        }
    }
    bail!("the merge allocates without end")
}

/// Merges with one failure, which changes no content; calling again does what is left.
fn merged_after(
    faults: &FailNth,
    nth: u64,
    map: &Map,
    contents: usize,
    id: impl Fn(usize) -> u64,
) -> Result<(i32, bool)> {
    let ended = faults.during(nth, || errno(sksm::merge_exact(map.addr(), map.len())))?;
    map.expect_all(&id)?;
    map.merge()?;
    let found = copies(&map.pfns()?);
    ensure!(found == contents, "merging again leaves {found} copies");
    map.expect_all(&id)?;
    Ok(ended)
}

/// An allocation that fails leaves the page that it was for. All others merge, whatever the call returns, unless it failed before
/// the first.
fn insertion() -> Result<()> {
    let mut in_between = 0;
    let done = sweep(|nth, faults| {
        let (map, contents) = pages(nth)?;
        let start = Counters::now()?;
        let ended = faults.during(nth, || errno(sksm::merge_exact(map.addr(), map.len())))?;
        let change = start.change()?;
        let left = copies(&map.pfns()?) - contents;
        let begun = change.pages_published > 0;
        in_between += u32::from(ended.1 && begun);
        ensure!(left <= 1 || !begun, "{left} pages are left: {change:?}");
        map.expect_all(|page| id(nth, page))?;
        Ok(ended)
    });
    eprintln!("{in_between} failures in between");
    done?;
    ensure!(
        in_between > 0,
        "no allocation failed once a page was published"
    );
    Ok(())
}

/// It is split first.
fn of_huge_page(nth: u64, faults: &FailNth) -> Result<(i32, bool)> {
    const CONTENTS: usize = 8;
    let id = |page: usize| nth * 1000 + (page % CONTENTS) as u64;
    let map = Map::huge(TABLE / PAGE, id)?.context("no huge pages")?;
    merged_after(faults, nth, &map, CONTENTS, id)
}

/// The caller's allocations fail, for another process's memory.
fn of_another_process(nth: u64, faults: &FailNth) -> Result<(i32, bool)> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let child = Child::spawn(|parent| {
        map.fill_all(|page| id(nth, page));
        for _ in 0..2 {
            parent.meet()?;
            map.expect_all(|page| id(nth, page))?;
        }
        Ok(())
    })?;
    child.pause()?;
    let pidfd = child.pidfd()?;
    let fd = pidfd.as_fd().as_raw_fd();
    let range = libc::iovec {
        iov_base: map.addr() as *mut _,
        iov_len: map.len(),
    };
    let merge = || {
        // SAFETY: one valid range, of another process, in which merging changes nothing.
        let done = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                fd,
                &raw const range,
                1,
                sksm::MADV_MERGE,
                0,
            )
        };
        match done {
            -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
            done if done as usize == range.iov_len => 0,
            _ => -1,
        }
    };
    let ended = faults.during(nth, merge)?;
    child.go()?;
    child.pause()?;
    ensure!(merge() == 0, "merging again fails");
    let found = copies(&child.pagemap()?.pfns(map.addr(), PAGES)?);
    let contents = contents(nth);
    ensure!(found == contents, "merging again leaves {found} copies");
    child.go()?;
    child.join()?;
    Ok(ended)
}

/// Whoever goes before others would have to give them a turn within a second: not meanwhile, on this CPU.
fn without_turns_of_others<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let file = format!("{DEBUG}/sched/fair_server/cpu0/runtime");
    let before = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    fs::write(&file, "0").with_context(|| format!("cannot write {file}"))?;
    let done = work();
    fs::write(&file, before.trim()).with_context(|| format!("cannot write {file}"))?;
    done
}

/// More pages than the index has room for, and no memory for a larger one. It would be had later, by a work item, so a thread
/// that goes before all others publishes them.
fn index_cannot_grow() -> Result<()> {
    /// Buckets of the smallest table. A work item makes it grow when three quarters are taken, whoever publishes when all are.
    const BUCKETS: usize = 4096;
    const FREELY: usize = BUCKETS / 4 * 3 - 100;
    const ALL: usize = BUCKETS + 500;
    /// What a table consists of that is not allocated as a whole.
    const PART: &str = "/sys/kernel/slab/kmalloc-4k/failslab";
    needed()?;
    stay_on_one_cpu()?;
    let id = |page: usize| 1 + page as u64;
    let map = Map::anon(ALL)?;
    map.no_huge();
    map.fill_all(id);
    map.merge_pages(0..FREELY)?;
    fs::write(PART, "1").with_context(|| format!("cannot write {PART}"))?;
    set("failslab", "cache-filter", "Y")?;
    set("fail_page_alloc", "min-order", "4")?;
    for kind in KINDS {
        set(kind, "task-filter", "Y")?;
        set(kind, "times", "-1")?;
        set(kind, "probability", "100")?;
    }
    let switch = OpenOptions::new()
        .write(true)
        .open("/proc/thread-self/make-it-fail")?;
    let start = Counters::now()?;
    let merge = || errno(sksm::merge_exact(map.page(FREELY), (ALL - FREELY) * PAGE));
    let result = without_turns_of_others(|| {
        before_others(true)?;
        let result = failing(&switch, merge);
        before_others(false)?;
        result
    });
    let change = start.change()?;
    eprintln!("{change:?}");
    // Each page that the table cannot take is left, and costs the call nothing else.
    let result = result?;
    ensure!(result == 0, "error {result}");
    let (published, left) = (change.pages_published as usize, change.pages_busy as usize);
    ensure!(
        FREELY + published >= BUCKETS && FREELY + published + left == ALL,
        "{published} published, {left} left"
    );
    // Since 7.3 buckets may hold more than one until the work item has its turn.
    let crowded = system::kernel()?.split('.').next() != Some("6");
    ensure!((left == 0) == crowded, "{published} published, {left} left");
    map.expect_all(id)?;
    ensure!(merge() == 0, "merging again fails");
    let twin = Map::anon(ALL)?;
    twin.no_huge();
    twin.fill_all(id);
    twin.merge()?;
    ensure!(twin.pfns()? == map.pfns()?, "pages are not found");
    map.expect_all(id)
}

/// Makes allocations of this thread fail at random while `work` runs.
fn failing<R>(switch: &File, work: impl FnOnce() -> R) -> Result<R> {
    switch.write_all_at(b"1", 0)?;
    let result = work();
    switch.write_all_at(b"0", 0)?;
    Ok(result)
}

fn at_random() -> Result<()> {
    needed()?;
    for kind in KINDS {
        set(kind, "task-filter", "Y")?;
        set(kind, "times", "-1")?;
    }
    let switch = OpenOptions::new()
        .write(true)
        .open("/proc/thread-self/make-it-fail")?;
    let seeds = 1..=16;
    let (mut refused, mut merged) = (0, 0);
    for seed in seeds {
        let probability = [1, 3, 10, 30][seed as usize % 4];
        for kind in KINDS {
            set(kind, "probability", &probability.to_string())?;
        }
        let (map, contents) = pages(seed)?;
        let mut left = PAGES;
        for _ in 0..10 {
            let result = failing(&switch, || errno(sksm::merge_exact(map.addr(), map.len())))?;
            ensure!(result == 0 || result == EAGAIN, "error {result}");
            refused += u32::from(result == EAGAIN);
            let now = copies(&map.pfns()?);
            ensure!(
                now <= left,
                "{left} pages were left by earlier merges, {now} are now"
            );
            merged += left - now;
            left = now;
            map.expect_all(|page| id(seed, page))?;
        }
        map.merge()?;
        ensure!(
            copies(&map.pfns()?) == contents,
            "merging again does not finish"
        );
        map.expect_all(|page| id(seed, page))?;
        // Written and merged: what failed has left nothing behind that is in the way.
        map.fill_all(|page| id(seed, page) + 1);
        map.merge()?;
        map.expect_all(|page| id(seed, page) + 1)?;
    }
    eprintln!("{refused} merges were refused, {merged} pages merged in spite of failures");
    ensure!(refused > 0, "no failure has shown");
    ensure!(merged > 0, "nothing has merged");
    Ok(())
}
