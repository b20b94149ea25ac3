//! The way back: every page of a range, or of the machine, gets a copy of its own again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use libc::{
    EACCES, EINTR, EINVAL, ENOMEM, EPERM, MADV_MERGEABLE, MADV_PAGEOUT, MADV_UNMERGEABLE,
    MAP_PRIVATE,
};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::swap::Swap;
use sksm_guest::machine::sysfs::{Counters, KSM, SKSM, zero_pages_here};
use sksm_guest::memory::file::with_contents;
use sksm_guest::memory::map::{Map, READ, WRITE};
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::{Child, Pidfd, become_user, pipe};
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::{apart, copies, merged, merging, one_page, zero_pages};
use crate::ksm::{scans, unthrottled};
use crate::pins::splice;
use crate::remote::advise;
use crate::writers::{beside, count, for_a_while, for_a_while_until};

pub const TESTS: &[Test] = &[
    test("unmerge/own-range", own_range),
    test("unmerge/zero-pages", zeros),
    test("unmerge/file-pages", file_pages),
    test("unmerge/read-only", read_only),
    test("unmerge/children", children),
    test("unmerge/pages-of-ksm", pages_of_ksm),
    test("unmerge/large-range", large_range),
    test("unmerge/huge-pages", huge_pages),
    test("unmerge/pages-in-swap-cache", in_swap_cache),
    test("unmerge/hole", hole),
    test("unmerge/another-process", another_process),
    test("unmerge/another-process-without-rights", without_rights),
    test("unmerge/machine-wide", machine_wide),
    test(
        "unmerge/machine-wide-where-one-group-is-full",
        where_one_is_full,
    ),
    test("unmerge/interrupted", interrupted),
    test("unmerge/bad-value", bad_value),
    test("unmerge/while-merging", while_merging),
    test("unmerge/machine-while-merging", machine_while_merging),
];

fn unmerge(map: &Map) -> Result<()> {
    map.advise(MADV_UNMERGEABLE).context("MADV_UNMERGEABLE")
}

/// No page of it is merged, shared or the zero page.
fn on_its_own(pfns: &[u64]) -> Result<()> {
    apart(pfns)?;
    for pfn in pfns {
        let flags = Flags::of(*pfn)?;
        let own = flags.anon() && !flags.ksm() && !flags.zero_page();
        ensure!(own, "page {pfn:#x} is not of its own: {flags:x?}");
    }
    Ok(())
}

/// The engine holds what it held then.
fn as_at(start: &Counters) -> Result<()> {
    let change = start.change()?;
    let held = &change.held()[..4];
    ensure!(held.iter().all(|(_, change)| *change == 0), "{change:?}");
    Ok(())
}

const IDS: [u64; 8] = [5, 5, 5, 6, 7, 7, 0, 0];

/// Pages that KSM never had to do with. What is beside the range stays merged, and what was parted can merge again.
fn own_range() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&IDS)?;
    map.merge()?;
    let before = map.pfns()?;
    ensure!(copies(&before) == 4, "not merged");
    map.part(1..5).advise(MADV_UNMERGEABLE)?;
    let after = map.pfns()?;
    on_its_own(&after[1..5])?;
    ensure!(
        after[0] == before[0] && after[5..] == before[5..],
        "pages beside the range changed"
    );
    map.expect_all(|page| IDS[page])?;
    unmerge(&map)?;
    on_its_own(&map.pfns()?)?;
    as_at(&start)?;
    // Nothing to do, and nothing done.
    let pfns = map.pfns()?;
    unmerge(&map)?;
    ensure!(map.pfns()? == pfns, "pages of their own were copied");
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 4, "they do not merge again");
    map.expect_all(|page| IDS[page])
}

fn zeros() -> Result<()> {
    let (own, all) = (zero_pages_here()?, SKSM.number("pages_zero")?);
    let map = Map::filled(&[0; 6])?;
    map.merge()?;
    zero_pages(&map)?;
    map.part(2..6).advise(MADV_UNMERGEABLE)?;
    on_its_own(&map.pfns()?[2..])?;
    zero_pages(&map.part(0..2))?;
    let left = (zero_pages_here()? - own, SKSM.number("pages_zero")? - all);
    ensure!(left == (2, 2), "zero pages here, and in all: {left:?}");
    // A page that was never written is nobody's zero page, and stays absent or as it is.
    let untouched = Map::anon(4)?;
    untouched.no_huge();
    untouched.expect(1, 0)?;
    let before = untouched.pfn(1)?;
    unmerge(&untouched)?;
    let entries = sksm_guest::memory::pagemap::Pagemap::own()?.entries(untouched.addr(), 4)?;
    ensure!(
        [0, 2, 3].iter().all(|page| !entries[*page].present()),
        "absent pages have become present"
    );
    ensure!(untouched.pfn(1)? == before, "a page that was only read");
    map.expect_all(|_| 0)
}

fn file_pages() -> Result<()> {
    let file = with_contents(&[1, 2, 3, 4])?;
    let map = Map::new(4, WRITE, MAP_PRIVATE, Some(&file))?;
    for (page, id) in [(1, 7), (2, 7), (3, 0)] {
        map.fill(page, id);
    }
    map.expect(0, 1)?;
    map.merge()?;
    one_page(&map.pfns()?[1..3])?;
    let before = map.pfn(0)?;
    unmerge(&map)?;
    on_its_own(&map.pfns()?[1..])?;
    ensure!(map.pfn(0)? == before, "a page of the file itself changed");
    map.expect_all(|page| [1, 7, 7, 0][page])
}

/// Memory that may not be written, or not even read, now.
fn read_only() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&IDS)?;
    map.merge()?;
    map.protect_pages(0..4, READ)?;
    unmerge(&map)?;
    on_its_own(&map.pfns()?)?;
    as_at(&start)?;
    map.expect_all(|page| IDS[page])?;
    map.protect(WRITE)?;
    map.expect_all(|page| IDS[page])
}

/// A child that has the pages by fork keeps them as they are; its own call parts its own.
fn children() -> Result<()> {
    let map = Map::filled(&IDS)?;
    map.merge()?;
    let before = map.pfns()?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        unmerge(&map)?;
        parent.meet()?;
        map.expect_all(|page| IDS[page])
    })?;
    child.pause()?;
    let theirs = || child.pagemap()?.pfns(map.addr(), map.pages());
    unmerge(&map)?;
    ensure!(theirs()? == before, "a child's pages changed");
    on_its_own(&map.pfns()?)?;
    child.go()?;
    child.pause()?;
    on_its_own(&[map.pfns()?, theirs()?].concat())?;
    child.go()?;
    child.join()?;
    map.expect_all(|page| IDS[page])
}

/// KSM's and SKSM's pages in one range.
fn pages_of_ksm() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[5, 5, 6, 6, 0, 0])?;
    KSM.write("use_zero_pages", 1)?;
    map.part(0..2).merge()?;
    map.part(4..5).merge()?;
    map.advise(MADV_MERGEABLE)?;
    unthrottled()?;
    scans(4)?;
    KSM.write("run", 0)?;
    let pfns = map.pfns()?;
    one_page(&pfns[..2])?;
    one_page(&pfns[2..4])?;
    zero_pages(&map.part(4..6))?;
    unmerge(&map)?;
    on_its_own(&map.pfns()?)?;
    as_at(&start)?;
    map.expect_all(|page| [5, 5, 6, 6, 0, 0][page])
}

/// Many page tables, with much in them that there is nothing to do with.
fn large_range() -> Result<()> {
    const PAGES: usize = (48 << 20) / PAGE;
    let id = |page: usize| match page % 8 {
        0 => 0,
        1..4 => 1 + page as u64 / 1000,
        _ => 100_000 + page as u64,
    };
    let start = Counters::now()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let there = |page: usize| page / 512 % 3 != 1;
    for page in (0..PAGES).filter(|page| there(*page)) {
        map.fill(page, id(page));
    }
    merging(|| map.merge())?;
    unmerge(&map)?;
    as_at(&start)?;
    let entries = sksm_guest::memory::pagemap::Pagemap::own()?.entries(map.addr(), PAGES)?;
    let mut pfns = Vec::new();
    for (page, entry) in entries.iter().enumerate() {
        ensure!(entry.present() == there(page), "page {page} came or went");
        pfns.extend(entry.pfn());
    }
    apart(&pfns)?;
    (0..PAGES)
        .filter(|page| there(*page))
        .try_for_each(|page| map.expect(page, id(page)))
}

/// A huge page has nothing merged in it and stays whole; what was split for merging is parted.
fn huge_pages() -> Result<()> {
    const HUGE: usize = 512;
    let id = |page: usize| 1 + page as u64 % 16;
    let Some(map) = Map::huge(2 * HUGE, id)? else {
        return skip("no transparent huge pages in this kernel (CONFIG_TRANSPARENT_HUGEPAGE)");
    };
    map.merge_pages(HUGE..2 * HUGE)?;
    ensure!(copies(&map.pfns()?[HUGE..]) == 16, "not merged");
    let before = map.pfns()?;
    unmerge(&map)?;
    let after = map.pfns()?;
    ensure!(after[..HUGE] == before[..HUGE], "a huge page changed");
    ensure!(Flags::of(after[0])?.huge(), "a huge page was split");
    on_its_own(&after[HUGE..])?;
    map.expect_all(id)
}

/// A mapping that reclaim has made a swap entry would be one of the merged page again, as long as that is in the swap cache.
fn in_swap_cache() -> Result<()> {
    let _swap = Swap::on()?;
    let map = Map::filled(&[5])?;
    map.merge()?;
    let before = map.pfn(0)?;
    ensure!(Flags::of(before)?.ksm(), "not merged");
    // A pipe keeps the page in memory.
    let (_out, into) = pipe()?;
    splice(&map, 1, &into)?;
    map.advise(MADV_PAGEOUT)?;
    let entries = sksm_guest::memory::pagemap::Pagemap::own()?.entries(map.addr(), 1)?;
    ensure!(!entries[0].present(), "the page is not swapped out");
    unmerge(&map)?;
    map.expect(0, 5)?;
    on_its_own(&map.pfns()?)?;
    ensure!(map.pfn(0)? != before, "it is the merged page again");
    Ok(())
}

/// As for other advice: what is mapped is done, and the hole is told.
fn hole() -> Result<()> {
    let map = merged(6, 5)?;
    map.unmap_pages(2..3)?;
    let result = map.advise(MADV_UNMERGEABLE);
    let error = result.err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(ENOMEM), "over a hole: error {error:?}");
    let pfns = [0, 1, 3, 4, 5].map(|page| map.pfn(page));
    on_its_own(&pfns.into_iter().collect::<Result<Vec<_>>>()?)
}

/// A child with these pages, merged; it checks them when told to go on.
fn holder(map: &Map, prepare: impl FnOnce() -> Result<()>) -> Result<Child> {
    let child = Child::spawn(|parent| {
        prepare()?;
        map.fill_all(|page| IDS[page]);
        map.merge()?;
        parent.meet()?;
        map.expect_all(|page| IDS[page])
    })?;
    child.pause()?;
    Ok(child)
}

fn pfns(child: &Child, map: &Map) -> Result<Vec<u64>> {
    child.pagemap()?.pfns(map.addr(), map.pages())
}

fn another_process() -> Result<()> {
    let map = Map::filled(&IDS)?;
    map.merge()?;
    let child = holder(&map, || Ok(()))?;
    let (ours, theirs) = (map.pfns()?, pfns(&child, &map)?);
    ensure!(ours == theirs, "not merged");
    let ranges = [(map.addr(), 3 * PAGE), (map.page(5), 3 * PAGE)];
    let result = advise(&child.pidfd()?, &ranges, MADV_UNMERGEABLE, 0);
    ensure!(result == Ok(6 * PAGE), "process_madvise: {result:?}");
    let now = pfns(&child, &map)?;
    on_its_own(&[&now[..3], &now[5..]].concat())?;
    ensure!(now[3..5] == theirs[3..5], "pages beside the ranges changed");
    ensure!(map.pfns()? == ours, "the caller's pages changed");
    // Of itself.
    let own = Pidfd::open(std::process::id() as i32)?;
    let result = advise(&own, &[(map.addr(), map.len())], MADV_UNMERGEABLE, 0);
    ensure!(result == Ok(map.len()), "of itself: {result:?}");
    on_its_own(&map.pfns()?)?;
    child.go()?;
    child.join()?;
    map.expect_all(|page| IDS[page])
}

/// Whoever may not advise may not part pages either.
fn without_rights() -> Result<()> {
    let map = Map::filled(&IDS)?;
    for (owner, wanted) in [(0, EACCES), (1002, EACCES), (1001, EPERM)] {
        let child = holder(&map, || become_user(owner))?;
        let pidfd = child.pidfd()?;
        let before = pfns(&child, &map)?;
        Child::spawn(|_| {
            become_user(1001)?;
            let result = advise(&pidfd, &[(map.addr(), map.len())], MADV_UNMERGEABLE, 0);
            ensure!(result == Err(wanted), "a process of {owner}: {result:?}");
            Ok(())
        })?
        .join()?;
        ensure!(pfns(&child, &map)? == before, "pages changed");
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// Whoever merged them, in whatever domain.
fn machine_wide() -> Result<()> {
    let start = Counters::now()?;
    let group = Cgroup::new("elsewhere")?;
    let map = Map::filled(&IDS)?;
    map.merge()?;
    let children = [
        holder(&map, || Ok(()))?,
        holder(&map, || become_user(1001))?,
        holder(&map, || group.enter())?,
    ];
    SKSM.write("unmerge", 1)?;
    let mut all = map.pfns()?;
    for child in &children {
        all.extend(pfns(child, &map)?);
    }
    on_its_own(&all)?;
    as_at(&start)?;
    for child in children {
        child.go()?;
        child.join()?;
    }
    map.expect_all(|page| IDS[page])?;
    // With nothing to do.
    SKSM.write("unmerge", 1)?;
    map.merge()?;
    one_page(&map.pfns()?[..3])
}

/// A group whose limit leaves no room for copies keeps what it shares, and who is looked at later gets his own all the same.
fn where_one_is_full() -> Result<()> {
    const PAGES: usize = 4096;
    let id = |page: usize| 1 + (page % (PAGES / 2)) as u64;
    let group = Cgroup::new("full")?;
    let many = Map::anon(PAGES)?;
    many.no_huge();
    let full = Child::spawn(|parent| {
        group.enter()?;
        // Nobody is killed for copies that are not to be had.
        fs::write("/proc/self/oom_score_adj", "-1000")?;
        many.fill_all(id);
        many.merge()?;
        parent.meet()?;
        many.expect_all(id)?;
        parent.meet()?;
        many.expect_all(id)
    })?;
    full.pause()?;
    ensure!(copies(&pfns(&full, &many)?) == PAGES / 2, "not merged");
    if group.path().join("memory.swap.max").exists() {
        group.write("memory.swap.max", "0")?;
    }
    // As long as there is a limit it must not run: a page that it faulted in and that nobody is killed for would be tried for ever.
    let limit = group.number("memory.current")?;
    group.write("memory.max", &limit.to_string())?;
    let map = Map::filled(&IDS)?;
    let later = holder(&map, || Ok(()))?;
    let refused = fs::write(SKSM.path("unmerge"), "1");
    let error = refused.err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(ENOMEM), "one group is full: error {error:?}");
    on_its_own(&pfns(&later, &map)?)?;
    later.go()?;
    later.join()?;
    ensure!(
        copies(&pfns(&full, &many)?) < PAGES,
        "there was room for all"
    );
    group.write("memory.max", "max")?;
    full.go()?;
    full.pause()?;
    SKSM.write("unmerge", 1)?;
    on_its_own(&pfns(&full, &many)?)?;
    full.go()?;
    full.join()
}

extern "C" fn ignore(_: i32) {}

/// A signal ends it, with all contents right; written again it does the rest.
fn interrupted() -> Result<()> {
    let pages = quarter_where_slow(32 * 1024)?;
    let id = |page: usize| 1 + page as u64 / 2;
    let start = Counters::now()?;
    let map = Map::anon(pages)?;
    map.no_huge();
    map.fill_all(id);
    map.merge()?;
    let mut action: libc::sigaction = {
        // SAFETY: a valid action when it is all zeros.
        unsafe { std::mem::zeroed() }
    };
    // Without SA_RESTART.
    action.sa_sigaction = ignore as extern "C" fn(i32) as usize;
    // SAFETY: a handler that does nothing.
    check(unsafe { libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()) })?;
    let every = |micros: i64| -> Result<()> {
        let tick = libc::timeval {
            tv_sec: 0,
            tv_usec: micros,
        };
        let timer = libc::itimerval {
            it_interval: tick,
            it_value: tick,
        };
        // SAFETY: a valid timer value.
        check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) })?;
        Ok(())
    };
    let mut switch = OpenOptions::new().write(true).open(SKSM.path("unmerge"))?;
    every(500)?;
    // Once: whoever writes all begins again.
    let result = switch.write(b"1");
    every(0)?;
    let error = result.err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(EINTR), "interrupted: error {error:?}");
    let left = start.change()?.pages_sharing;
    eprintln!("{left} of {} pages are still shared", pages / 2);
    ensure!(left > 0, "nothing was left to do");
    map.expect_all(id)?;
    SKSM.write("unmerge", 1)?;
    as_at(&start)?;
    apart(&map.pfns()?)?;
    map.expect_all(id)
}

fn bad_value() -> Result<()> {
    let map = merged(4, 5)?;
    let path = SKSM.path("unmerge");
    let mode = fs::metadata(&path)
        .context("no unmerge")?
        .permissions()
        .mode();
    ensure!(mode & 0o777 == 0o200, "its mode is {mode:o}");
    for value in ["0", "2", "-1", "11", "y", "1 1"] {
        let error = fs::write(&path, value).err();
        let error = error.and_then(|error| error.raw_os_error());
        ensure!(error == Some(EINVAL), "{value:?}: error {error:?}");
    }
    Child::spawn(|_| {
        become_user(1001)?;
        let error = fs::write(&path, "1").err();
        let error = error.and_then(|error| error.raw_os_error());
        ensure!(error == Some(EACCES), "by anybody: error {error:?}");
        Ok(())
    })?
    .join()?;
    one_page(&map.pfns()?)
}

/// Merges and writes while `part` parts pages again and again, and others merge too; in the end all are apart.
fn meanwhile(
    part: impl Fn(&Map) -> Result<()> + Sync,
    others: &[fn() -> Result<()>],
) -> Result<()> {
    const PAGES: usize = 64;
    let start = Counters::now()?;
    let map = Map::filled(&[0; PAGES])?;
    let others = (others.iter())
        .map(|other| Child::spawn(|_| other()))
        .collect::<Result<Vec<_>>>()?;
    let parted = AtomicUsize::new(0);
    let write = |round: u64| count(&map, 0..PAGES, round);
    let part_and_look = || {
        let before = copies(&map.pfns()?);
        part(&map)?;
        let after = copies(&map.pfns()?);
        parted.fetch_add(usize::from(before < after), Relaxed);
        Ok(())
    };
    let seen = || parted.load(Relaxed) > 0;
    let merging_too = |_: &_| beside(1, || map.merge(), |_| for_a_while_until(seen, write));
    merging(|| beside(1, part_and_look, merging_too))?;
    let parted = parted.into_inner();
    eprintln!("{parted} times there were more pages than before");
    ensure!(parted > 0, "nothing was ever parted");
    others.into_iter().try_for_each(Child::join)?;
    map.fill_all(|page| 1 + page as u64 / 4);
    map.merge()?;
    ensure!(copies(&map.pfns()?) == PAGES / 4, "they do not merge again");
    part(&map)?;
    apart(&map.pfns()?)?;
    map.expect_all(|page| 1 + page as u64 / 4)?;
    as_at(&start)
}

fn while_merging() -> Result<()> {
    meanwhile(unmerge, &[])
}

/// Merges the same contents as others do, as this user.
fn merge_for_a_while(uid: u32) -> Result<()> {
    become_user(uid)?;
    let map = Map::filled(&[0; 32])?;
    for_a_while(|round| {
        let id = |page: usize| round + page as u64 % 5;
        map.fill_all(id);
        map.merge()?;
        map.expect_all(id)
    })
}

fn machine_while_merging() -> Result<()> {
    let everywhere = |_: &Map| SKSM.write("unmerge", 1);
    meanwhile(
        everywhere,
        &[|| merge_for_a_while(0), || merge_for_a_while(1001)],
    )
}
