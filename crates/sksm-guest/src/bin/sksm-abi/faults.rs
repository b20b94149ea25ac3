//! Failing allocations: a merge says so at most, keeps what it has done, and leaks nothing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use libc::EAGAIN;
use sksm_guest::memory::Map;
use sksm_guest::process::Child;
use sksm_guest::report::{Test, skip, test};

use crate::expect::{copies, errno};

pub const TESTS: &[Test] = &[
    test("faults/one-by-one", one_by_one),
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

fn pages(seed: u64) -> Result<(Map, usize)> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(|page| id(seed, page));
    let mut contents: Vec<u64> = (0..PAGES).map(|page| id(seed, page)).collect();
    contents.sort_unstable();
    contents.dedup();
    Ok((map, contents.len()))
}

/// Makes each allocation of a merge fail in turn: what was merged so far stays, and calling again does the rest.
fn one_by_one() -> Result<()> {
    needed()?;
    // Opened once: opening would allocate, and fail in the merge's place.
    let faults = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/thread-self/fail-nth")?;
    let arm = |nth: u64| faults.write_all_at(nth.to_string().as_bytes(), 0);
    let mut refused = 0;
    for nth in 1..5000 {
        let (map, contents) = pages(nth)?;
        let mut left = [0; 8];
        arm(nth)?;
        let result = errno(sksm::merge_exact(map.addr(), map.len()));
        // The file tells how many more allocations it takes until the failure; 0 after it.
        let read = faults.read_at(&mut left, 0)?;
        arm(0)?;
        let injected = left[..read].trim_ascii() == b"0";
        ensure!(
            result == 0 || result == EAGAIN && injected,
            "allocation {nth} failed: error {result}"
        );
        refused += u32::from(result == EAGAIN);
        map.expect_all(|page| id(nth, page))?;
        map.merge()?;
        ensure!(
            copies(&map.pfns()?) == contents,
            "allocation {nth}: merging again does not finish"
        );
        map.expect_all(|page| id(nth, page))?;
        if !injected {
            eprintln!(
                "{} allocations failed, {refused} merges were refused",
                nth - 1
            );
            ensure!(refused > 0, "no failure has shown");
            return Ok(());
        }
    }
    bail!("the merge of {PAGES} pages allocates without end")
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
