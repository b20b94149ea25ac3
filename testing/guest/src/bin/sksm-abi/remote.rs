//! `process_madvise`: merging in another process, and who may.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, bail, ensure};
use libc::{EACCES, EBADF, EINVAL, ENOMEM, EPERM, ESRCH};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, Pidfd, become_user};
use sksm_guest::memory::rights::{SYS_NICE, become_user_with};
use sksm_guest::page::PAGE;
use sksm_guest::syscall::check;

use crate::expect::{apart, errno, merged, one_page};
use crate::writers::for_a_while;

pub const TESTS: &[Test] = &[
    test("remote/own-process", own_process),
    test("remote/other-process", other_process),
    test("remote/several-ranges", several_ranges),
    test("remote/hole", hole),
    test("remote/many-ranges", many_ranges),
    test("remote/partial-result", partial_result),
    test("remote/flags", flags),
    test("remote/own-thread", own_thread),
    test("remote/exited-process", exited_process),
    test("remote/exiting-process", exiting_process),
    test("remote/unprivileged", unprivileged),
    test("remote/same-user-without-nice", same_user_without_nice),
    test("remote/same-user-with-nice", same_user_with_nice),
    test("remote/own-process-unprivileged", own_process_unprivileged),
];

fn own_process() -> Result<()> {
    let map = Map::filled(&[5; 4])?;
    let own = Pidfd::open(std::process::id() as i32)?;
    let advised = sksm::merge_remote(own.as_fd(), &[(map.addr(), map.len())])?;
    ensure!(advised == map.len(), "{advised} bytes advised");
    one_page(&map.pfns()?)?;
    map.expect_all(|_| 5)
}

fn other_process() -> Result<()> {
    let ours = merged(1, 5)?;
    let map = Map::filled(&[0; 4])?;
    let child = Child::spawn(|parent| {
        map.fill_all(|_| 5);
        parent.meet()?;
        map.expect_all(|_| 5)?;
        map.fill(0, 6);
        map.expect_all(|page| if page == 0 { 6 } else { 5 })
    })?;
    child.pause()?;
    let advised = sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
    ensure!(advised == map.len(), "{advised} bytes advised");
    let pfns = child.pagemap()?.pfns(map.addr(), 4)?;
    one_page(&[pfns, ours.pfns()?].concat())?;
    // The caller's own pages at these addresses are not meant.
    apart(&map.pfns()?)?;
    child.go()?;
    child.join()?;
    ours.expect(0, 5)
}

fn several_ranges() -> Result<()> {
    let map = Map::filled(&[5; 8])?;
    let child = target()?;
    let ranges = [0, 2, 6].map(|page| (map.page(page), PAGE));
    let advised = sksm::merge_remote(child.pidfd()?.as_fd(), &ranges)?;
    ensure!(advised == 3 * PAGE, "{advised} bytes advised");
    let pfns = child.pagemap()?.pfns(map.addr(), 8)?;
    one_page(&[pfns[0], pfns[2], pfns[6]])?;
    apart(&[1, 3, 4, 5, 7, 0].map(|page| pfns[page]))?;
    child.go()?;
    child.join()
}

/// The range with the hole is where it stops; what comes before counts.
fn hole() -> Result<()> {
    let map = Map::filled(&[5; 8])?;
    map.unmap_pages(4..5)?;
    let child = target()?;
    let pidfd = child.pidfd()?;
    let result = sksm::merge_remote(pidfd.as_fd(), &[(map.page(3), 3 * PAGE)]);
    ensure!(errno(result) == ENOMEM, "a hole: {result:?}");
    let ranges = [(map.addr(), 2 * PAGE), (map.page(3), 3 * PAGE)];
    let advised = sksm::merge_remote(pidfd.as_fd(), &ranges)?;
    ensure!(advised == 2 * PAGE, "{advised} bytes advised");
    let pagemap = child.pagemap()?;
    let pfns = [0, 1, 3, 5].map(|page| pagemap.pfn(map.page(page)));
    one_page(&pfns.into_iter().collect::<Result<Vec<_>>>()?)?;
    child.go()?;
    child.join()
}

fn exited_process() -> Result<()> {
    let map = merged(2, 5)?;
    let child = Child::spawn(|_| Ok(()))?;
    let pidfd = child.pidfd()?;
    child.join()?;
    let result = sksm::merge_remote(pidfd.as_fd(), &[(map.addr(), map.len())]);
    ensure!(errno(result) == ESRCH, "an exited process: {result:?}");
    let file = std::fs::File::open("/proc/self/status")?;
    let result = sksm::merge_remote(file.as_fd(), &[(map.addr(), map.len())]);
    ensure!(
        errno(result) == EBADF,
        "a file that is no pidfd: {result:?}"
    );
    Ok(())
}

/// `process_madvise` itself: bytes advised, or the error number.
pub fn advise(
    pidfd: &Pidfd,
    ranges: &[(usize, usize)],
    advice: i32,
    flags: u32,
) -> Result<usize, i32> {
    let part = |(addr, len): &(usize, usize)| libc::iovec {
        iov_base: *addr as *mut _,
        iov_len: *len,
    };
    let parts: Vec<_> = ranges.iter().map(part).collect();
    let fd = pidfd.as_fd().as_raw_fd();
    let call = libc::SYS_process_madvise;
    // SAFETY: valid parts; no test gives an advice that changes content.
    check(unsafe { libc::syscall(call, fd, parts.as_ptr(), parts.len(), advice, flags) })
        .map(|advised| advised as usize)
        .map_err(|error| error.raw_os_error().unwrap_or(-1))
}

/// The error number that another remote advice gives in the same place.
pub fn errno_of_cold(pidfd: &Pidfd, addr: usize, len: usize) -> i32 {
    advise(pidfd, &[(addr, len)], libc::MADV_COLD, 0)
        .err()
        .unwrap_or(0)
}

/// A child that has these pages, and stays until it is told to go.
fn target() -> Result<Child> {
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
    Ok(child)
}

/// As many ranges as the kernel takes in one call, and one more.
fn many_ranges() -> Result<()> {
    const MOST: usize = 1024;
    // So that one page can stand for all of them.
    SKSM.write("max_page_sharing", 2 * MOST)?;
    let map = Map::filled(&[5; MOST + 1])?;
    let child = target()?;
    let pidfd = child.pidfd()?;
    let ranges: Vec<_> = (0..=MOST).map(|page| (map.page(page), PAGE)).collect();
    let result = advise(&pidfd, &ranges, sksm::MADV_MERGE, 0);
    ensure!(result == Err(EINVAL), "{} ranges: {result:?}", MOST + 1);
    let pagemap = child.pagemap()?;
    apart(&pagemap.pfns(map.addr(), MOST)?).context("refused, and merged all the same")?;
    let result = advise(&pidfd, &ranges[..MOST], sksm::MADV_MERGE, 0);
    ensure!(result == Ok(MOST * PAGE), "{MOST} ranges: {result:?}");
    one_page(&pagemap.pfns(map.addr(), MOST)?)?;
    let last = pagemap.pfn(map.page(MOST))?;
    apart(&[pagemap.pfn(map.addr())?, last])?;
    // The library asks as often as is needed.
    let advised = sksm::merge_remote(pidfd.as_fd(), &ranges)?;
    ensure!(advised == map.len(), "{advised} bytes advised");
    one_page(&pagemap.pfns(map.addr(), MOST + 1)?)?;
    child.go()?;
    child.join()
}

/// It stops at the first range that it refuses and tells how far it came: what comes after is untouched.
fn partial_result() -> Result<()> {
    let map = Map::filled(&[5; 40])?;
    map.unmap_pages(30..31)?;
    let child = target()?;
    let (pidfd, pagemap) = (child.pidfd()?, child.pagemap()?);
    // A range of one page, one of two, one with a bad address or a hole, and one that is not reached.
    let stops = |first: usize, bad: (usize, usize)| -> Result<()> {
        let ranges = [
            (map.page(first), PAGE),
            (map.page(first + 1), 2 * PAGE),
            bad,
            (map.page(first + 5), 2 * PAGE),
        ];
        let result = advise(&pidfd, &ranges, sksm::MADV_MERGE, 0);
        ensure!(result == Ok(3 * PAGE), "{result:?} bytes, not {}", 3 * PAGE);
        one_page(&pagemap.pfns(map.page(first), 3)?)?;
        let untouched = pagemap.pfns(map.page(first + 5), 2)?;
        apart(&[vec![pagemap.pfn(map.page(first))?], untouched].concat())
    };
    stops(0, (map.page(3) + 1, PAGE)).context("an address that is no page's")?;
    stops(10, (map.page(29), 3 * PAGE)).context("a hole")?;
    // The pages around the hole were advised, though the range does not count.
    one_page(&[0, 29, 31].map(|page| pagemap.pfn(map.page(page)).unwrap_or(page as u64)))?;
    let result = advise(&pidfd, &[(map.page(3) + 1, PAGE)], sksm::MADV_MERGE, 0);
    ensure!(result == Err(EINVAL), "a bad address alone: {result:?}");
    let result = advise(&pidfd, &[(map.page(30), PAGE)], sksm::MADV_MERGE, 0);
    ensure!(result == Err(ENOMEM), "a hole alone: {result:?}");
    child.go()?;
    child.join()
}

fn flags() -> Result<()> {
    let map = Map::filled(&[5; 2])?;
    let child = target()?;
    let pidfd = child.pidfd()?;
    for flags in [1, 1 << 31] {
        let result = advise(&pidfd, &[(map.addr(), map.len())], sksm::MADV_MERGE, flags);
        ensure!(result == Err(EINVAL), "flags {flags:#x}: {result:?}");
    }
    apart(&child.pagemap()?.pfns(map.addr(), 2)?)?;
    child.go()?;
    child.join()
}

/// Another thread asks, by a descriptor of the process and by one of a thread.
fn own_thread() -> Result<()> {
    const PIDFD_THREAD: i32 = libc::O_EXCL;
    // SAFETY: takes nothing.
    let asking = unsafe { libc::gettid() };
    let map = Map::filled(&[5; 4])?;
    let ask = |pidfd: Pidfd, pages: Range<usize>| -> Result<()> {
        let range = (map.page(pages.start), pages.len() * PAGE);
        let advised = sksm::merge_remote(pidfd.as_fd(), &[range])?;
        ensure!(advised == range.1, "{advised} bytes advised");
        one_page(&map.pfns()?[..pages.end])
    };
    let thread = || -> Result<()> {
        ask(Pidfd::open(std::process::id() as i32)?, 0..2)?;
        ask(Pidfd::open_with(asking, PIDFD_THREAD)?, 2..4)
    };
    std::thread::scope(|scope| scope.spawn(thread).join().expect("the thread panicked"))?;
    map.expect_all(|_| 5)
}

/// A process that exits while others merge its memory: done, or it is not there any more.
fn exiting_process() -> Result<()> {
    let ours = merged(1, 5)?;
    let map = Map::filled(&[0; 64])?;
    let (mut done, mut gone) = (0, 0);
    for_a_while(|round| {
        let child = Child::spawn(|parent| {
            map.fill_all(|page| 5 + page as u64 % 2);
            parent.meet()?;
            // Sooner or later while it is being merged.
            (0..round % 8).for_each(|page| map.fill(page as usize, 7));
            Ok(())
        })?;
        child.pause()?;
        let pidfd = child.pidfd()?;
        child.go()?;
        loop {
            match advise(&pidfd, &[(map.addr(), map.len())], sksm::MADV_MERGE, 0) {
                Ok(advised) if advised == map.len() => done += 1,
                // Nothing is mapped any more, or the memory is the process's no longer.
                Err(ENOMEM | ESRCH) => break,
                other => bail!("while it exits: {other:?}"),
            }
        }
        gone += 1;
        child.join()
    })?;
    ensure!(done >= gone / 2, "merged {done} times in {gone} processes");
    ours.expect(0, 5)
}

/// A child of user `other` asks to merge memory of a child of user `owner`. It must be refused as other advice is.
fn refused(owner: u32, other: u32, wanted: i32) -> Result<()> {
    let map = Map::filled(&[5; 2])?;
    let target = Child::spawn(|parent| {
        become_user(owner)?;
        parent.meet()
    })?;
    target.pause()?;
    let pidfd = target.pidfd()?;
    let (addr, len) = (map.addr(), map.len());
    let asking = Child::spawn(|_| {
        become_user(other)?;
        let as_cold = errno_of_cold(&pidfd, addr, len);
        ensure!(as_cold == wanted, "MADV_COLD gives error {as_cold}");
        let found = errno(sksm::merge_remote(pidfd.as_fd(), &[(addr, len)]));
        ensure!(found == as_cold, "error {found}, MADV_COLD gives {as_cold}");
        Ok(())
    })?;
    asking.join()?;
    apart(&target.pagemap()?.pfns(addr, 2)?)?;
    // Root may.
    sksm::merge_remote(pidfd.as_fd(), &[(addr, len)])?;
    one_page(&target.pagemap()?.pfns(addr, 2)?)?;
    target.go()?;
    target.join()
}

fn unprivileged() -> Result<()> {
    refused(0, 1001, EACCES)?;
    refused(1002, 1001, EACCES)
}

fn same_user_without_nice() -> Result<()> {
    refused(1001, 1001, EPERM)
}

fn same_user_with_nice() -> Result<()> {
    let map = Map::filled(&[5; 2])?;
    let of = |uid: u32| -> Result<Child> {
        let child = Child::spawn(|parent| {
            become_user(uid)?;
            map.fill_all(|_| 6);
            parent.meet()
        })?;
        child.pause()?;
        Ok(child)
    };
    let (same, other) = (of(1001)?, of(1002)?);
    let (allowed, refused) = (same.pidfd()?, other.pidfd()?);
    let range = (map.addr(), map.len());
    let asking = Child::spawn(|_| {
        become_user_with(1001, SYS_NICE)?;
        let advised = sksm::merge_remote(allowed.as_fd(), &[range])?;
        ensure!(advised == range.1, "{advised} bytes advised");
        let found = errno(sksm::merge_remote(refused.as_fd(), &[range]));
        ensure!(found == EACCES, "another user's process: error {found}");
        Ok(())
    })?;
    asking.join()?;
    one_page(&same.pagemap()?.pfns(range.0, 2)?)?;
    apart(&other.pagemap()?.pfns(range.0, 2)?)?;
    for child in [same, other] {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// One's own memory needs no right.
fn own_process_unprivileged() -> Result<()> {
    let child = Child::spawn(|parent| {
        become_user(1001)?;
        let map = Map::filled(&[5; 4])?;
        let own = Pidfd::open(std::process::id() as i32)?;
        let advised = sksm::merge_remote(own.as_fd(), &[(map.addr(), map.len())])?;
        ensure!(advised == map.len(), "{advised} bytes advised");
        // Page frame numbers are root's to see.
        parent.send(map.addr() as u64)?;
        parent.pause()
    })?;
    let addr = child.receive()? as usize;
    one_page(&child.pagemap()?.pfns(addr, 4)?)?;
    child.go()?;
    child.join()
}
