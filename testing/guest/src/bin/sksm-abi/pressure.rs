//! A machine that runs short of memory: merged pages go to swap space of both kinds, and come back.

use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::slow::checks_everything;
use sksm_guest::machine::swap::{self, Swap, SwapFile};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::{Child, Link, pipe};
use sksm_guest::page::{PAGE, WORDS};
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::{copies, errno, merged, one_page};
use crate::pins::splice;
use crate::reclaim::{all_out, swapped_here, swapped_there, written};
use crate::writers::beside;

pub const TESTS: &[Test] = &[
    test("pressure/zram-and-back", || {
        let _swap = Swap::on()?;
        out_and_back(Back::ByAccess)
    }),
    test("pressure/zram-and-swapoff", || {
        let _swap = Swap::on()?;
        out_and_back(Back::BySwapoff)
    }),
    test("pressure/swap-file-and-back", || {
        let _swap = SwapFile::on()?;
        out_and_back(Back::ByAccess)
    }),
    test("pressure/swap-file-and-swapoff", || {
        let _swap = SwapFile::on()?;
        out_and_back(Back::BySwapoff)
    }),
    test("pressure/pageout-of-published-pages", pageout_of_published),
    test("pressure/pageout-leaves-shared-pages", pageout_of_shared),
    test("pressure/merged-before-others-return", merged_before_others),
    test("pressure/written-in-swap-cache", written_in_cache),
    test("pressure/whole-machine", || {
        not_while_checking()?;
        let _swap = Swap::on()?;
        whole_machine()
    }),
    test("pressure/whole-machine-with-swap-file", || {
        not_while_checking()?;
        let _swap = SwapFile::with_size(512 << 20)?;
        whole_machine()
    }),
];

#[derive(Clone, Copy)]
enum Back {
    ByAccess,
    BySwapoff,
}

const PAGES: usize = 512;

fn id(page: usize) -> u64 {
    1 + page as u64 / 4
}

/// Merged pages of two processes and a forked child all go out, come back equal, and merge again.
fn out_and_back(back: Back) -> Result<()> {
    let group = Cgroup::new("pressure")?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let body = |parent: &Link| {
        group.enter()?;
        map.fill_all(id);
        map.merge()?;
        let child = Child::spawn(|parent| {
            parent.meet()?;
            map.expect_all(id)?;
            map.fill(0, 99);
            map.expect_all(|page| if page == 0 { 99 } else { id(page) })
        })?;
        child.pause()?;
        parent.meet()?;
        child.go()?;
        child.join()?;
        map.expect_all(id)?;
        parent.meet()?;
        map.expect_all(id)?;
        map.fill_all(|page| 2000 + page as u64);
        map.expect_all(|page| 2000 + page as u64)
    };
    let children = [Child::spawn(body)?, Child::spawn(body)?];
    children.iter().try_for_each(|child| child.pause())?;
    let mut out = [0; 2];
    // One attempt may give up at pages that are busy just then.
    for _ in 0..10 {
        group.reclaim(64 << 20)?;
        for (child, out) in children.iter().zip(&mut out) {
            *out = swapped_there(child, &map)?;
        }
        if out == [PAGES; 2] {
            break;
        }
    }
    eprintln!("{out:?} of {PAGES} pages were swapped out");
    ensure!(
        out.iter().all(|out| *out > PAGES * 9 / 10),
        "merged pages are not reclaimed: {out:?}"
    );
    if matches!(back, Back::BySwapoff) {
        swap::off_all()?;
        for child in &children {
            let left = swapped_there(child, &map)?;
            ensure!(left == 0, "{left} pages are in swap space that is off");
        }
    }
    for child in &children {
        child.go()?;
        child.pause()?;
    }
    // Sharing may have been lost; merging again restores it.
    let mut pfns = Vec::new();
    for child in &children {
        sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
        pfns.push(child.pagemap()?.pfns(map.addr(), PAGES)?);
    }
    ensure!(
        pfns[0] == pfns[1] && copies(&pfns[0]) == PAGES / 4,
        "{} copies",
        copies(&pfns.concat())
    );
    children.into_iter().try_for_each(|child| {
        child.go()?;
        child.join()
    })
}

/// What one process maps once goes out when it is told to.
fn pageout_of_published() -> Result<()> {
    let _swap = Swap::on()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let unique = |page: usize| 1 + page as u64;
    map.fill_all(unique);
    map.merge()?;
    map.advise(libc::MADV_PAGEOUT)?;
    let out = swapped_here(&map)?;
    ensure!(
        out > PAGES * 9 / 10,
        "{out} of {PAGES} published pages were paged out"
    );
    map.expect_all(unique)?;
    map.merge()?;
    map.fill_all(|page| unique(page) + 1);
    map.expect_all(|page| unique(page) + 1)
}

/// The advice is about pages of this mapping alone, of whatever kind.
fn pageout_of_shared() -> Result<()> {
    let _swap = Swap::on()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(id);
    map.merge()?;
    let before = map.pfns()?;
    map.advise(libc::MADV_PAGEOUT)?;
    ensure!(
        map.pfns()? == before,
        "pages that others map were paged out"
    );
    map.expect_all(id)
}

/// A page that is back from swap space while others still have swap entries for it: it is not published, as those would become
/// mappings that no reverse map knows.
fn merged_before_others() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("others")?;
    group.enter()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let other = Child::spawn(|parent| {
        map.fill_all(id);
        map.merge()?;
        parent.meet()?;
        map.expect_all(id)?;
        parent.meet()?;
        map.expect_all(id)
    })?;
    other.pause()?;
    map.fill_all(id);
    map.merge()?;
    let (ours, theirs) = (Pagemap::own()?, other.pagemap()?);
    let maps = [(&ours, &map), (&theirs, &map)];
    all_out(&group, &maps)?;
    map.expect_all(id)?;
    map.merge()?;
    other.go()?;
    other.pause()?;
    all_out(&group, &maps)?;
    map.expect_all(id)?;
    other.go()?;
    other.join()
}

/// A merged page that is unmapped and still in the swap cache comes back as it is. A write by the first who does is for itself
/// alone, and places of those who are not back yet are kept, however many are new.
fn written_in_cache() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("cache")?;
    group.enter()?;
    let map = merged(2, 5)?;
    let other = Child::spawn(|parent| {
        map.fill_all(|_| 5);
        map.merge()?;
        parent.meet()?;
        map.expect_all(|_| 5)?;
        parent.meet()?;
        map.expect_all(|_| 5)
    })?;
    other.pause()?;
    let page = map.pfn(0)?;
    let (ours, theirs) = (Pagemap::own()?, other.pagemap()?);
    one_page(&[theirs.pfns(map.addr(), 2)?, vec![page]].concat())?;
    // What a pipe holds cannot leave the swap cache.
    let (_out, into) = pipe()?;
    splice(&map, 1, &into)?;
    all_out(&group, &[(&ours, &map), (&theirs, &map)])?;
    drop((_out, into));
    map.fill(0, 6);
    let more: Vec<Map> = (0..16)
        .map(|_| {
            let map = Map::filled(&[5])?;
            map.merge()?;
            one_page(&[map.pfn(0)?, page])?;
            Ok(map)
        })
        .collect::<Result<_>>()?;
    other.go()?;
    other.pause()?;
    one_page(&[theirs.pfns(map.addr(), 2)?, vec![page]].concat())?;
    let own = more.iter().chain([&map]).map(|map| (&ours, map));
    all_out(&group, &own.chain([(&theirs, &map)]).collect::<Vec<_>>())?;
    other.go()?;
    other.join()?;
    map.expect(0, 6)?;
    map.expect(1, 5)?;
    more.iter().try_for_each(|map| map.expect(0, 5))
}

/// What takes ten seconds elsewhere takes five minutes there. The stress swaps in that kernel too.
fn not_while_checking() -> Result<()> {
    if checks_everything()? {
        return skip("takes minutes in a kernel that checks every access and lock");
    }
    Ok(())
}

/// The first word behind `name` in each line that starts with it, as a number.
fn numbers<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.lines()
        .filter_map(move |line| line.trim().strip_prefix(name))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// Memory that nothing can take away, so that little is left for everybody else: so many bytes above what the kernel keeps for
/// itself.
fn hog(leave: usize) -> Result<Vec<Map>> {
    const ENOUGH: usize = (1 << 20) / PAGE;
    let reserve: usize = numbers(&fs::read_to_string("/proc/zoneinfo")?, "min ").sum();
    let mut held = Vec::new();
    loop {
        // A swap file that was written just now takes part of it, which the kernel would take away, and gives up once it is on
        // its disk.
        // SAFETY: no arguments.
        unsafe { libc::sync() };
        fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop the page cache")?;
        let info = fs::read_to_string("/proc/meminfo")?;
        let free = numbers(&info, "MemFree:").next().context("MemFree")? << 10;
        let pages = (free / PAGE).saturating_sub(leave / PAGE + reserve);
        if pages < ENOUGH {
            return Ok(held);
        }
        let map = Map::anon(pages)?;
        // Many small pages take long where each is checked. A kernel without huge pages refuses, and is right.
        map.advise(libc::MADV_HUGEPAGE).ok();
        // SAFETY: the mapping's own range; its contents do not change.
        check(unsafe { libc::mlock(map.addr() as *const _, map.len()) })
            .context("cannot lock memory")?;
        eprintln!("{} MiB are locked", map.len() >> 20);
        held.push(map);
    }
}

/// Makes the kernel count active and inactive pages, as reading does. It does so every two seconds by itself, and before that
/// reclaim does not learn that all have become active, as pages of two processes do at once: it takes none, and kills.
fn count_pages() -> Result<()> {
    const STATISTICS: &str = "/sys/fs/cgroup/memory.stat";
    fs::read(STATISTICS).with_context(|| format!("cannot read {STATISTICS}"))?;
    std::thread::sleep(Duration::from_millis(5));
    Ok(())
}

/// Two processes, each with three times the memory that is left, half of it in pages that repeat, all of them the other's too:
/// were all of it merged at once it would still be half as much again, which is more than what the kernel finds elsewhere.
fn whole_machine() -> Result<()> {
    const LEFT: usize = 48 << 20;
    const PAGES: usize = 3 * LEFT / PAGE;
    const CHUNK: usize = 512;
    let held = hog(LEFT)?;
    let start = written()?;
    // Little in each page, so that a compressed disk in this same memory helps.
    let id = |page: usize| {
        1 + if page % 2 == 0 {
            page as u64 / 16
        } else {
            1 << 32 | page as u64
        }
    };
    // Every fourth page is written again in the second round.
    let first = |round: u64, page: usize| if page % 4 == 0 { round } else { 0 };
    let expect = |map: &Map, round: u64| {
        (0..PAGES).try_for_each(|page| {
            let found = (
                map.get(page, 0),
                map.get(page, WORDS - 1),
                (1..WORDS - 1).all(|word| map.get(page, word) == 0),
            );
            let right = (first(round, page) + id(page), id(page), true);
            ensure!(
                found == right,
                "page {page} holds {found:?} instead of {right:?}"
            );
            Ok(())
        })
    };
    let body = |parent: &Link| {
        let map = Map::anon(PAGES)?;
        map.no_huge();
        for round in [0, 1] {
            for start in (0..PAGES).step_by(CHUNK) {
                let chunk = start..start + CHUNK;
                for page in chunk.clone().filter(|page| round == 0 || page % 4 == 0) {
                    map.put(page, 0, first(round, page) + id(page));
                    map.put(page, WORDS - 1, id(page));
                }
                // With no memory to remember what it merges a call may end early.
                let error = errno(sksm::merge_exact(map.page(start), CHUNK * PAGE));
                ensure!([0, libc::EAGAIN].contains(&error), "merging: error {error}");
            }
            expect(&map, round)?;
            let entries = Pagemap::own()?.entries(map.addr(), PAGES)?;
            let out = |repeats: bool| {
                let kind = |page: &usize| (page % 2 == 0) == repeats;
                let pages = (0..PAGES).filter(kind);
                pages.filter(|page| entries[*page].swapped()).count() as u64
            };
            parent.send(out(true))?;
            parent.send(out(false))?;
        }
        Ok(())
    };
    let children = [Child::spawn(body)?, Child::spawn(body)?];
    let (mut repeated, mut others) = (0, 0);
    let listen = |_: &AtomicUsize| {
        for child in &children {
            for _ in [0, 1] {
                let out = [child.receive()?, child.receive()?];
                eprintln!("{out:?} of {} pages are in swap space", PAGES / 2);
                (repeated, others) = (repeated + out[0], others + out[1]);
            }
        }
        Ok(())
    };
    beside(1, count_pages, listen)?;
    ensure!(
        repeated > 0 && others > 0,
        "{repeated} pages that repeat and {others} others were out when somebody looked"
    );
    children.into_iter().try_for_each(Child::join)?;
    let out = written()? - start;
    eprintln!("{out} pages were swapped out");
    ensure!(
        out as usize > PAGES / 6,
        "hardly any page was swapped out: {out}"
    );
    drop(held);
    Ok(())
}
