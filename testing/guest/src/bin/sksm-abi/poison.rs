//! Memory failure on merged pages.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libc::MADV_MERGEABLE;
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::Swap;
use sksm_guest::machine::sysfs::{Counters, KSM, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{Flags, map_count};
use sksm_guest::memory::process::{Child, Ended, Link, exit_now, pipe};
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::{merged, one_page};
use crate::ksm::{scans, unthrottled};
use crate::pins::splice;
use crate::reclaim::all_out;

pub const TESTS: &[Test] = &[
    test("poison/soft-offline", soft_offline),
    test("poison/memory-failure", memory_failure),
    test("poison/signals-by-madvise-as-for-ksm", || {
        signals_as_for_ksm(Cause::Madvise)
    }),
    test("poison/signals-by-hardware-as-for-ksm", || {
        signals_as_for_ksm(Cause::Hardware)
    }),
    test("poison/only-mappers-are-told", only_mappers),
    test("poison/index-forgets", index_forgets),
    test("poison/published-page-by-madvise", || {
        published(Cause::Madvise)
    }),
    test("poison/published-page-by-hardware", || {
        published(Cause::Hardware)
    }),
    test("poison/another-copy-by-madvise", || {
        another_copy(Cause::Madvise)
    }),
    test("poison/another-copy-by-hardware", || {
        another_copy(Cause::Hardware)
    }),
    test("poison/copies-of-a-crowd", crowd),
    test("poison/clean-page-in-swap-cache", clean_in_swap_cache),
    test("poison/page-in-swap-cache", || in_swap_cache(false)),
    test("poison/page-in-swap-cache-and-mapped", || {
        in_swap_cache(true)
    }),
];

/// An advice on no pages tells whether the kernel knows it.
pub fn needs_memory_failure(map: &Map) -> Result<()> {
    if map.advise_pages(0..0, libc::MADV_HWPOISON).is_err() {
        return skip("no memory failure handling in this kernel (CONFIG_MEMORY_FAILURE)");
    }
    Ok(())
}

/// Moves a page off its frame and takes the frame out of use. An isolated page or a full batch is busy for a moment only.
pub fn offline(map: &Map, page: usize) -> Result<()> {
    const SOFT_OFFLINE: i32 = 101;
    const ATTEMPTS: usize = 20;
    for attempt in 1.. {
        match map.advise_pages(page..page + 1, SOFT_OFFLINE) {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::ResourceBusy && attempt < ATTEMPTS => {
                std::thread::yield_now();
            }
            Err(error) => return Err(error).context("soft offline"),
        }
    }
    Ok(())
}

/// Lets a page fail. Busy means that the kernel could not free it; it is marked as failed all the same.
fn fail(map: &Map, page: usize) -> Result<()> {
    match map.advise_pages(page..page + 1, libc::MADV_HWPOISON) {
        Err(error) if error.kind() != ErrorKind::ResourceBusy => {
            Err(error).context("memory failure")
        }
        _ => Ok(()),
    }
}

/// A merged page whose frame is taken out of use moves, for all who map it.
fn soft_offline() -> Result<()> {
    let map = Map::filled(&[5; 4])?;
    needs_memory_failure(&map)?;
    map.merge()?;
    let before = map.pfn(0)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.expect_all(|_| 5)?;
        map.fill(0, 6);
        map.expect_all(|page| if page == 0 { 6 } else { 5 })
    })?;
    child.pause()?;
    offline(&map, 1)?;
    one_page(&map.pfns()?)?;
    ensure!(map.pfn(0)? != before, "the page did not move");
    map.expect_all(|_| 5)?;
    child.go()?;
    child.join()?;
    // It is still found by content.
    let more = merged(2, 5)?;
    one_page(&[map.pfns()?, more.pfns()?].concat())
}

/// Whoever maps a failed page either still has its content or dies of SIGBUS; everybody else and the kernel go on.
fn memory_failure() -> Result<()> {
    let map = Map::filled(&[5, 5, 6])?;
    needs_memory_failure(&map)?;
    let body = |parent: &Link| {
        map.fill_all(|page| [5, 5, 6][page]);
        map.merge()?;
        one_page(&map.pfns()?[..2])?;
        parent.meet()?;
        map.expect(2, 6)?;
        map.expect(0, 5)?;
        map.expect(1, 5)
    };
    let sharers = (0..3)
        .map(|_| Child::spawn(body))
        .collect::<Result<Vec<_>>>()?;
    sharers.iter().try_for_each(|child| child.pause())?;
    let tolerable = |ended| matches!(ended, Ended::Exit(0) | Ended::Signal(libc::SIGBUS));
    let ended = Child::spawn(|_| {
        map.merge()?;
        fail(&map, 0)?;
        map.expect(2, 6)
    })?
    .ended()?;
    ensure!(
        tolerable(ended),
        "the process with the failed page: {ended}"
    );
    for child in sharers {
        // It may be dead already, then nobody listens.
        child.go().ok();
        let ended = child.ended()?;
        eprintln!("a sharer of the failed page: {ended}");
        ensure!(tolerable(ended), "a sharer of the failed page: {ended}");
    }
    // The failed page is nobody's twin.
    let more = merged(3, 5)?;
    more.expect_all(|_| 5)?;
    map.expect(2, 6)
}

const INJECT: &str = "/sys/kernel/debug/hwpoison/corrupt-pfn";

/// Lets the hardware report that a frame failed.
fn inject(pfn: u64) -> Result<()> {
    fs::write(INJECT, format!("{pfn:#x}")).context("cannot inject a failure")
}

fn needs_injection() -> Result<()> {
    needs_memory_failure(&Map::anon(1)?)?;
    if !fs::exists(INJECT)? {
        return skip("no hardware poison to inject in this kernel (CONFIG_HWPOISON_INJECT)");
    }
    Ok(())
}

/// What makes a page fail: an advice of a process that maps it, or the frame by itself.
#[derive(Clone, Copy, PartialEq)]
enum Cause {
    Madvise,
    Hardware,
}

#[derive(Clone, Copy)]
enum Engine {
    Sksm,
    Ksm,
}

/// Exit status of a process that was told of a memory failure: this and the code of the signal.
const TOLD: i32 = 40;
const ON_ACCESS: i32 = TOLD + libc::BUS_MCEERR_AR;
const AT_ONCE: i32 = TOLD + libc::BUS_MCEERR_AO;

extern "C" fn on_bus_error(_: i32, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel passes the signal's information.
    exit_now(TOLD + unsafe { (*info).si_code })
}

/// Lets this process report a memory failure with its exit status; `early`: also one in a page that it does not touch.
fn tell(early: bool) -> Result<()> {
    // SAFETY: all zeros is an empty set of signals and flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: a valid action, whose handler only ends the process.
    check(unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) })?;
    let policy = if early {
        libc::PR_MCE_KILL_EARLY
    } else {
        libc::PR_MCE_KILL_LATE
    };
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_SET, policy, 0, 0) })
        .context("PR_MCE_KILL")?;
    Ok(())
}

/// What a process does about the page that fails.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Late,
    Early,
    /// Late, and its pages come from its parent.
    Forked,
    NeverLooks,
    /// Makes it fail, where a process does that.
    Causes,
}

const ROLES: [Role; 5] = [
    Role::Late,
    Role::Early,
    Role::Forked,
    Role::NeverLooks,
    Role::Causes,
];

/// Starts a process that shares page 0 with all others; page 1 is its own.
fn sharer(engine: Engine, cause: Cause, role: Role, map: &Map) -> Result<Child> {
    let child = Child::spawn(|parent| {
        tell(role == Role::Early)?;
        if role != Role::Forked {
            // Pages of its own.
            map.fill_all(|page| [5, 1000 + u64::from(std::process::id())][page]);
        }
        if matches!(engine, Engine::Ksm) {
            map.advise(MADV_MERGEABLE)?;
        }
        parent.meet()?;
        match role {
            Role::NeverLooks => {}
            Role::Causes if cause == Cause::Madvise => fail(map, 0)?,
            _ => map.expect(0, 5)?,
        }
        // Its other page is as good as ever.
        let own = if role == Role::Forked {
            7
        } else {
            1000 + u64::from(std::process::id())
        };
        map.expect(1, own)
    })?;
    child.pause()?;
    Ok(child)
}

/// How each of the processes ends, in the order of [`ROLES`], when a page that this engine merged fails.
fn ends(engine: Engine, cause: Cause) -> Result<Vec<Ended>> {
    let map = Map::filled(&[5, 7])?;
    match engine {
        Engine::Sksm => map.merge()?,
        Engine::Ksm => map.advise(MADV_MERGEABLE)?,
    }
    // A forked process shares from the start; the others when they are merged below.
    let children = ROLES.map(|role| sharer(engine, cause, role, &map));
    let children = children.into_iter().collect::<Result<Vec<_>>>()?;
    match engine {
        Engine::Sksm => {
            for child in &children {
                sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
            }
        }
        Engine::Ksm => {
            unthrottled()?;
            scans(4)?;
            KSM.write("run", 0)?;
        }
    }
    let pfn = map.pfn(0)?;
    for child in &children {
        ensure!(child.pagemap()?.pfn(map.page(0))? == pfn, "not one page");
    }
    ensure!(
        map_count(pfn)? == 1 + ROLES.len() as u64,
        "{} mappings",
        map_count(pfn)?
    );
    // This process must not be told: it gives its mapping up.
    drop(map);
    let died = |child: &Child, patience| child.pidfd()?.ends_within(Duration::from_secs(patience));
    let (first, causing) = (&children[..4], &children[4]);
    match cause {
        Cause::Madvise => {
            causing.go()?;
            ensure!(
                died(causing, 60)?,
                "the process that made the page fail lives"
            );
        }
        Cause::Hardware => inject(pfn)?,
    }
    for (child, role) in first.iter().zip(ROLES) {
        let at_once = role == Role::Early;
        // Who is told late must live on by itself.
        ensure!(
            died(child, if at_once { 60 } else { 0 })? == at_once,
            "told {}",
            if at_once { "too late" } else { "too early" }
        );
    }
    children
        .into_iter()
        .map(|child| {
            // It may be dead already, then nobody listens.
            child.go().ok();
            child.ended()
        })
        .collect()
}

/// Every process that maps a failed page gets the signal that it gets for a page that KSM merged, with the same code.
fn signals_as_for_ksm(cause: Cause) -> Result<()> {
    needs_injection()?;
    let (ours, theirs) = (ends(Engine::Sksm, cause)?, ends(Engine::Ksm, cause)?);
    let wanted = [ON_ACCESS, AT_ONCE, ON_ACCESS, 0, ON_ACCESS].map(Ended::Exit);
    ensure!(
        ours == wanted,
        "of SKSM's page: {ours:?}, wanted {wanted:?}"
    );
    ensure!(
        ours == theirs,
        "of SKSM's page: {ours:?}, of KSM's: {theirs:?}"
    );
    Ok(())
}

/// Who could map the page that fails, and does not any more, hears nothing of it, even if it asked to be told early.
fn only_mappers() -> Result<()> {
    let map = merged(2, 5)?;
    needs_memory_failure(&map)?;
    let parted = |part: &dyn Fn() -> Result<()>, has: u64| {
        let child = Child::spawn(|parent| {
            tell(true)?;
            part()?;
            parent.meet()?;
            map.expect_all(|_| has)
        })?;
        child.pause()?;
        anyhow::Ok(child)
    };
    let children = [
        // Pages of its own, and none.
        parted(
            &|| {
                map.fill_all(|_| 6);
                Ok(())
            },
            6,
        )?,
        parted(&|| Ok(map.advise(libc::MADV_DONTNEED)?), 0)?,
    ];
    Child::spawn(|_| {
        tell(false)?;
        fail(&map, 0)
    })?
    .ended()?;
    for child in children {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// A page that failed is out of the index: equal pages are published anew, and the counters know nothing of it.
fn index_forgets() -> Result<()> {
    let start = Counters::now()?;
    let map = merged(3, 5)?;
    needs_memory_failure(&map)?;
    let failed = map.pfn(0)?;
    Child::spawn(|_| {
        tell(false)?;
        fail(&map, 0)
    })?
    .ended()?;
    let change = start.change()?;
    ensure!(
        (change.pages_shared, change.pages_sharing) == (0, 0),
        "the failed page counts: {change:?}"
    );
    let more = merged(4, 5)?;
    ensure!(more.pfn(0)? != failed, "the failed page was found");
    let change = start.change()?;
    ensure!(
        (change.pages_shared, change.pages_sharing) == (1, 3),
        "{change:?}"
    );
    let again = merged(2, 5)?;
    one_page(&[more.pfns()?, again.pfns()?].concat())?;
    again.expect_all(|_| 5)?;
    more.expect_all(|_| 5)?;
    // Who drops the failed page gets a new one.
    map.advise(libc::MADV_DONTNEED)?;
    map.fill_all(|_| 5);
    map.merge()?;
    one_page(&[map.pfns()?, again.pfns()?].concat())
}

/// A page that was published and found no twin: its only mapper is told, and an equal page is published anew.
fn published(cause: Cause) -> Result<()> {
    needs_injection()?;
    let start = Counters::now()?;
    let unshared = |wanted: i64, when: &str| -> Result<()> {
        let change = start.change()?;
        let found = (change.pages_unshared, change.pages_shared);
        ensure!(found == (wanted, 0), "{when}: {change:?}");
        Ok(())
    };
    let child = Child::spawn(|parent| {
        tell(false)?;
        // Not its parent's too.
        let map = Map::filled(&[5, 6])?;
        map.merge()?;
        parent.send(map.pfn(0)?)?;
        parent.pause()?;
        if cause == Cause::Madvise {
            fail(&map, 0)?;
        }
        map.expect(1, 6)?;
        map.expect(0, 5)
    })?;
    let failed = child.receive()?;
    unshared(2, "published")?;
    if cause == Cause::Hardware {
        inject(failed)?;
        ensure!(Flags::of(failed)?.poisoned(), "the page has not failed");
        unshared(1, "failed")?;
        // While whoever mapped it is still there.
        let more = Map::filled(&[5])?;
        more.merge()?;
        unshared(2, "published anew")?;
    }
    child.go()?;
    let ended = child.ended()?;
    ensure!(
        ended == Ended::Exit(ON_ACCESS),
        "the process with the failed page: {ended}"
    );
    unshared(0, "all gone")?;
    let more = merged(2, 5)?;
    ensure!(more.pfn(0)? != failed, "the failed page was found");
    more.expect_all(|_| 5)
}

/// A merged page that was to be swapped out and is not yet: processes have swap entries of it, and one, perhaps, has mapped it
/// again. Its bytes are nowhere else, so whoever touches it is told, by either way.
fn in_swap_cache(mapped: bool) -> Result<()> {
    needs_injection()?;
    let _swap = Swap::on()?;
    let group = Cgroup::new("poison")?;
    let start = Counters::now()?;
    let map = Map::anon(1)?;
    map.no_huge();
    let sharer = |first: bool| {
        let map = &map;
        let group = &group;
        let child = Child::spawn(move |parent| {
            group.enter()?;
            tell(false)?;
            map.fill(0, 5);
            map.merge()?;
            // What a pipe holds is not written to swap space.
            let (out, into) = pipe()?;
            if first {
                splice(map, 1, &into)?;
            }
            parent.meet()?;
            if first && mapped {
                map.expect(0, 5)?;
                drop((out, into));
            }
            parent.meet()?;
            map.expect(0, 5)
        })?;
        child.pause()?;
        anyhow::Ok(child)
    };
    let children = [sharer(true)?, sharer(false)?];
    let pagemaps = [children[0].pagemap()?, children[1].pagemap()?];
    let page = pagemaps[0].pfn(map.addr())?;
    one_page(&[page, pagemaps[1].pfn(map.addr())?])?;
    all_out(&group, &[(&pagemaps[0], &map), (&pagemaps[1], &map)])?;
    for child in &children {
        child.go()?;
        child.pause()?;
    }
    if mapped {
        one_page(&[page, pagemaps[0].pfn(map.addr())?])?;
    }
    let flags = Flags::of(page)?;
    ensure!(
        flags.ksm() && flags.swap_cache(),
        "no merged page in the swap cache: {flags:x?}"
    );
    match fs::write(INJECT, format!("{page:#x}")) {
        // The pipe keeps it from being freed.
        Err(error) if mapped || error.kind() != ErrorKind::ResourceBusy => {
            return Err(error).context("cannot inject a failure");
        }
        _ => {}
    }
    ensure!(Flags::of(page)?.poisoned(), "the page has not failed");
    let change = start.change()?;
    ensure!(
        (change.pages_shared, change.pages_unshared) == (0, 0),
        "the failed page counts: {change:?}"
    );
    for child in children {
        child.go()?;
        let ended = child.ended()?;
        ensure!(
            ended == Ended::Exit(ON_ACCESS),
            "a process that touches it: {ended}"
        );
    }
    let more = merged(2, 5)?;
    ensure!(more.pfn(0)? != page, "the failed page was found");
    more.expect_all(|_| 5)
}

/// A content with more users than one page may have: when one of its pages fails, another one stands in, and nobody is told.
fn another_copy(cause: Cause) -> Result<()> {
    const USERS: usize = 4;
    needs_injection()?;
    SKSM.write("max_page_sharing", USERS)?;
    let start = Counters::now()?;
    let rescued = SKSM.number("pages_rescued")?;
    let map = Map::anon(USERS)?;
    map.no_huge();
    let sharer = || {
        let child = Child::spawn(|parent| {
            tell(true)?;
            map.fill_all(|_| 5);
            map.merge()?;
            // A grandchild maps it too, and is found.
            let forked = Child::spawn(|parent| {
                parent.meet()?;
                map.expect_all(|_| 5)
            })?;
            forked.pause()?;
            parent.meet()?;
            if cause == Cause::Madvise {
                fail(&map, 0)?;
            }
            map.expect_all(|_| 5)?;
            parent.meet()?;
            map.fill_all(|_| 6);
            forked.go()?;
            forked.join()?;
            map.expect_all(|_| 6)
        })?;
        child.pause()?;
        anyhow::Ok(child)
    };
    let children = [sharer()?, sharer()?];
    let pages = |child: &Child| child.pagemap()?.pfns(map.addr(), USERS);
    let [failed, other] = [pages(&children[0])?, pages(&children[1])?];
    one_page(&failed)?;
    one_page(&other)?;
    ensure!(failed[0] != other[0], "all users have one page");
    let before = start.change()?;
    if cause == Cause::Hardware {
        inject(failed[0])?;
    }
    for child in &children {
        child.go()?;
        child.pause()?;
        if cause == Cause::Madvise {
            break;
        }
    }
    ensure!(Flags::of(failed[0])?.poisoned(), "the page has not failed");
    let now = pages(&children[0])?;
    one_page(&now)?;
    ensure!(now[0] != failed[0], "the failed page is mapped still");
    let after = start.change()?;
    ensure!(
        (after.pages_shared, after.pages_sharing) == (before.pages_shared, before.pages_sharing),
        "counts before: {before:?}, after: {after:?}"
    );
    ensure!(
        SKSM.number("pages_rescued")? == rescued + 1,
        "not counted as rescued"
    );
    let [first, second] = children;
    if cause == Cause::Madvise {
        // Once more, until nothing is left to take its place.
        second.go()?;
        second.pause()?;
        let now = pages(&second)?;
        ensure!(now[0] != other[0], "the failed page is mapped still");
    }
    for child in [first, second] {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// Pages that only a hash says are equal do not stand in for each other: those who touch the failed one are told.
fn crowd() -> Result<()> {
    const USERS: usize = 4;
    const WORD: usize = 12;
    needs_injection()?;
    SKSM.write("max_page_sharing", USERS)?;
    // Another content has the sample's place.
    let first = merged(1, 5)?;
    let rescued = SKSM.number("pages_rescued")?;
    let child = Child::spawn(|parent| {
        tell(false)?;
        let map = Map::filled(&[5; 2 * USERS])?;
        (0..map.pages()).for_each(|page| map.put(page, WORD, 1));
        map.merge()?;
        parent.send(map.pfn(0)?)?;
        parent.pause()?;
        map.expect(USERS * 2 - 1, 5).ok();
        ensure!(map.get(0, WORD) == 1, "another page's bytes");
        Ok(())
    })?;
    let failed = child.receive()?;
    inject(failed)?;
    child.go()?;
    let ended = child.ended()?;
    ensure!(ended == Ended::Exit(ON_ACCESS), "who touches it: {ended}");
    ensure!(
        SKSM.number("pages_rescued")? == rescued,
        "a page was replaced by one that nobody compared with it"
    );
    first.expect_all(|_| 5)
}

/// A page that was read back, and whose swap slot has its bytes still: nobody is told, and it is one page again.
fn clean_in_swap_cache() -> Result<()> {
    needs_injection()?;
    let _swap = Swap::on()?;
    let group = Cgroup::new("clean")?;
    let map = Map::anon(1)?;
    map.no_huge();
    let sharer = || {
        let child = Child::spawn(|parent| {
            group.enter()?;
            tell(true)?;
            map.fill(0, 5);
            map.merge()?;
            parent.meet()?;
            map.expect(0, 5)?;
            parent.meet()?;
            map.expect(0, 5)?;
            parent.meet()?;
            map.fill(0, 6);
            map.expect(0, 6)
        })?;
        child.pause()?;
        anyhow::Ok(child)
    };
    let children = [sharer()?, sharer()?, sharer()?];
    let pagemaps = (children.iter().map(Child::pagemap)).collect::<Result<Vec<_>>>()?;
    let maps: Vec<_> = pagemaps.iter().map(|pagemap| (pagemap, &map)).collect();
    all_out(&group, &maps)?;
    let deadline = deadline();
    while SKSM.number("pages_asleep")? == 0 {
        ensure!(Instant::now() < deadline, "the page does not leave memory");
        group.reclaim(16 << 20)?;
    }
    // One reads it: the others' entries keep it in the swap cache.
    children[0].go()?;
    children[0].pause()?;
    let failed = pagemaps[0].pfn(map.addr())?;
    let flags = Flags::of(failed)?;
    ensure!(
        flags.ksm() && flags.swap_cache(),
        "no merged page in the swap cache: {flags:x?}"
    );
    inject(failed)?;
    ensure!(Flags::of(failed)?.poisoned(), "the page has not failed");
    children[0].go()?;
    children[0].pause()?;
    for child in &children[1..] {
        child.go()?;
        child.pause()?;
        child.go()?;
        child.pause()?;
    }
    let pages =
        (pagemaps.iter().map(|pagemap| pagemap.pfn(map.addr()))).collect::<Result<Vec<_>>>()?;
    one_page(&pages)?;
    ensure!(pages[0] != failed, "the failed page is mapped still");
    children.into_iter().try_for_each(|child| {
        child.go()?;
        child.join()
    })
}
