//! The call: what it returns, what it refuses, how often and how long it may run.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libc::{EINVAL, ENOMEM};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::machine::tracefs::Trace;
use sksm_guest::memory::map::{Map, READ};
use sksm_guest::memory::process::{Child, Ended, Pidfd, pipe};
use sksm_guest::page::PAGE;
use sksm_guest::syscall::check;

use crate::expect::{apart, copies, merge_gives, merged, one_page};
use crate::pins::splice;
use crate::remote::advise;

pub const TESTS: &[Test] = &[
    test("advice/feature-test", feature_test),
    test("advice/unaligned-address", unaligned_address),
    test("advice/length", length),
    test("advice/hole", hole),
    test("advice/starts-in-a-hole", starts_in_a_hole),
    test("advice/done-on-return", done_on_return),
    test(
        "advice/second-call-changes-nothing",
        second_call_changes_nothing,
    ),
    test("advice/second-call-is-cheap", second_call_is_cheap),
    test("advice/absent-pages-stay-absent", absent_pages_stay_absent),
    test("advice/fatal-signal", fatal_signal),
    test("advice/other-signals", other_signals),
    test("advice/one-call-of-many-ranges", many_ranges),
    test("advice/batches-are-emptied-once", emptied_once),
];

fn feature_test() -> Result<()> {
    merge_gives(0, 0, 0)?;
    ensure!(
        sksm::support() == sksm::Support::Merge,
        "the library does not see it"
    );
    Ok(())
}

fn unaligned_address() -> Result<()> {
    let map = Map::filled(&[1, 1])?;
    for off in [1, 8, PAGE - 1] {
        merge_gives(EINVAL, map.addr() + off, PAGE)?;
        merge_gives(EINVAL, map.addr() + off, 0)?;
    }
    apart(&map.pfns()?)?;
    map.merge()?;
    one_page(&map.pfns()?)
}

fn length() -> Result<()> {
    let map = Map::filled(&[1; 4])?;
    let before = map.pfns()?;
    merge_gives(0, map.addr(), 0)?;
    merge_gives(EINVAL, map.addr(), usize::MAX - PAGE)?;
    ensure!(map.pfns()? == before, "a call on no pages changed some");
    // As for every advice, a length is rounded up to whole pages.
    merge_gives(0, map.addr(), PAGE + 1)?;
    let after = map.pfns()?;
    one_page(&after[..2])?;
    ensure!(after[2..] == before[2..], "pages beyond the range changed");
    map.expect_all(|_| 1)
}

fn hole() -> Result<()> {
    let map = Map::filled(&[5; 6])?;
    map.unmap_pages(2..4)?;
    merge_gives(ENOMEM, map.addr(), map.len())?;
    one_page(&[map.pfn(0)?, map.pfn(1)?, map.pfn(4)?, map.pfn(5)?])?;
    [0, 1, 4, 5]
        .iter()
        .try_for_each(|page| map.expect(*page, 5))
}

fn starts_in_a_hole() -> Result<()> {
    let map = Map::filled(&[5; 4])?;
    map.unmap_pages(0..1)?;
    map.unmap_pages(3..4)?;
    merge_gives(ENOMEM, map.addr(), map.len())?;
    one_page(&[map.pfn(1)?, map.pfn(2)?])?;
    merge_gives(ENOMEM, map.addr(), PAGE)
}

fn done_on_return() -> Result<()> {
    let start = Counters::now()?;
    let map = merged(10, 7)?;
    let change = start.change()?;
    ensure!(
        (
            change.pages_shared,
            change.pages_sharing,
            change.pages_unshared
        ) == (1, 9, 0),
        "ten equal pages: {change:?}"
    );
    ensure!(change.calls == 1, "one call counted as {}", change.calls);
    map.expect_all(|_| 7)
}

fn second_call_changes_nothing() -> Result<()> {
    let map = Map::filled(&[1, 1, 2, 2, 3, 4, 0, 0])?;
    map.merge()?;
    let (pfns, before) = (map.pfns()?, Counters::now()?);
    map.merge()?;
    let change = before.change()?;
    ensure!(map.pfns()? == pfns, "pages changed");
    ensure!(change.pages_merged == 0, "merged again: {change:?}");
    ensure!(
        change.held().iter().all(|(_, change)| *change == 0),
        "counters changed: {change:?}"
    );
    map.expect_all(|page| [1, 1, 2, 2, 3, 4, 0, 0][page])
}

fn second_call_is_cheap() -> Result<()> {
    // Half duplicates, half without a twin.
    let map = Map::anon(8192)?;
    map.no_huge();
    map.fill_all(|page| if page % 2 == 0 { 1 } else { page as u64 + 1 });
    let timed = || {
        let start = Instant::now();
        map.merge().map(|()| start.elapsed())
    };
    let first = timed()?;
    let again = [timed()?, timed()?, timed()?].into_iter().min();
    let again = again.expect("three times");
    // Looking at a page table entry and its folio is a small part of write-protecting, hashing and replacing.
    ensure!(again * 2 < first, "first call {first:?}, again {again:?}");
    Ok(())
}

fn absent_pages_stay_absent() -> Result<()> {
    let map = Map::anon(6)?;
    map.no_huge();
    map.fill(0, 3);
    map.fill(4, 3);
    map.merge()?;
    let entries = sksm_guest::memory::pagemap::Pagemap::own()?.entries(map.addr(), 6)?;
    for page in [1, 2, 3, 5] {
        ensure!(!entries[page].present(), "page {page} has become present");
    }
    one_page(&[map.pfn(0)?, map.pfn(4)?])?;
    // A page that was only read is the zero page, and stays that.
    map.protect(READ)?;
    map.expect(1, 0)?;
    let zero = map.pfn(1)?;
    let before = Counters::now()?;
    map.merge()?;
    ensure!(map.pfn(1)? == zero, "the zero page was replaced");
    ensure!(
        before.change()?.pages_zero == 0,
        "a zero page counted as merged"
    );
    Ok(())
}

/// A merge of many pages must not outlive SIGKILL.
fn fatal_signal() -> Result<()> {
    // Many times what is done until somebody notices that it has begun.
    let pages = quarter_where_slow(160 * 1024)?;
    let start = Counters::now()?;
    let child = Child::spawn(|parent| {
        let map = Map::anon(pages)?;
        map.no_huge();
        (0..pages).for_each(|page| map.put(page, 511, page as u64 + 1));
        parent.go()?;
        map.merge()
    })?;
    child.pause()?;
    // The merge is on its way once it has published the first page.
    while start.change()?.pages_unshared == 0 {
        ensure!(
            !child.pidfd()?.ends_within(Duration::ZERO)?,
            "the merge ended before anything was merged"
        );
        std::thread::yield_now();
    }
    let killed = Instant::now();
    child.kill();
    ensure!(child.ended()? == Ended::Signal(libc::SIGKILL), "not killed");
    let scanned = start.change()?.pages_scanned;
    eprintln!(
        "gone {:?} after SIGKILL, with {scanned} of {pages} pages scanned",
        killed.elapsed()
    );
    ensure!(
        scanned < pages as i64 * 9 / 10,
        "{scanned} of {pages} pages were scanned before the process died"
    );
    Ok(())
}

extern "C" fn ignore(_: i32) {}

/// A signal that is not fatal neither ends the merge nor gives an error.
fn other_signals() -> Result<()> {
    // SAFETY: a handler that does nothing.
    unsafe { libc::signal(libc::SIGALRM, ignore as extern "C" fn(i32) as usize) };
    let tick = libc::timeval {
        tv_sec: 0,
        tv_usec: 1000,
    };
    let timer = libc::itimerval {
        it_interval: tick,
        it_value: tick,
    };
    let map = Map::filled(&[6; 2048])?;
    // SAFETY: a valid timer value.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) })?;
    map.merge()?;
    let pfns = map.pfns()?;
    // Bounded sharing makes one copy for every 256 mappings.
    ensure!(copies(&pfns) == 8, "not all is merged");
    map.expect_all(|_| 6)
}

/// As many ranges as pages: a call is one call, whatever it is about.
fn many_ranges() -> Result<()> {
    const PAGES: usize = 64;
    let map = Map::filled(&[6; PAGES])?;
    let own = Pidfd::open(std::process::id() as i32)?;
    let ranges: Vec<_> = (0..PAGES).map(|page| (map.page(page), PAGE)).collect();
    let start = Counters::now()?;
    let result = advise(&own, &ranges, sksm::MADV_MERGE, 0);
    ensure!(result == Ok(map.len()), "process_madvise: {result:?}");
    let change = start.change()?;
    ensure!(change.calls == 1, "counted as {} calls", change.calls);
    one_page(&map.pfns()?)
}

/// All CPUs are told to put pages on their lists at most once a call, however many of its ranges have pages that are in use.
fn emptied_once() -> Result<()> {
    const PAGES: usize = 16;
    let trace = Trace::new()?;
    let (_out, into) = pipe()?;
    let map = Map::filled(&[6; 2 * PAGES])?;
    // Each range is of a page that the pipe has and one that nobody has.
    for page in 0..PAGES {
        splice(&map.part(2 * page..2 * page + 1), 1, &into)?;
    }
    let own = Pidfd::open(std::process::id() as i32)?;
    let ranges: Vec<_> = (0..PAGES)
        .map(|page| (map.page(2 * page), 2 * PAGE))
        .collect();
    let start = Counters::now()?;
    trace.set("workqueue/workqueue_queue_work", true)?;
    let result = advise(&own, &ranges, sksm::MADV_MERGE, 0);
    trace.set("workqueue/workqueue_queue_work", false)?;
    ensure!(result == Ok(map.len()), "process_madvise: {result:?}");
    let busy = start.change()?.pages_busy;
    ensure!(busy == PAGES as i64, "{busy} pages were busy");
    let cpus = std::thread::available_parallelism()?.get();
    let events = trace.take()?;
    let me = std::process::id() as i32;
    let emptied = events
        .iter()
        .filter(|event| event.pid == me && event.text.contains("function=lru_add_drain_per_cpu"));
    let emptied = emptied.count();
    eprintln!("{emptied} requests to {cpus} CPUs");
    ensure!(emptied <= cpus, "{emptied} requests to {cpus} CPUs");
    Ok(())
}
