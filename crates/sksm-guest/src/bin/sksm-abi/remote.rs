//! `process_madvise`: merging in another process, and who may.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Result, ensure};
use libc::{EACCES, EBADF, ENOMEM, EPERM, ESRCH};
use sksm_guest::memory::{Map, PAGE};
use sksm_guest::process::{Child, Pidfd, become_user, check};
use sksm_guest::report::{Test, test};

use crate::expect::{apart, errno, merged, one_page};

pub const TESTS: &[Test] = &[
    test("remote/own-process", own_process),
    test("remote/other-process", other_process),
    test("remote/several-ranges", several_ranges),
    test("remote/hole", hole),
    test("remote/exited-process", exited_process),
    test("remote/unprivileged", unprivileged),
    test("remote/same-user-without-nice", same_user_without_nice),
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
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
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
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
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

/// The error number that another remote advice gives in the same place.
pub fn errno_of_cold(pidfd: &Pidfd, addr: usize, len: usize) -> i32 {
    let part = libc::iovec {
        iov_base: addr as *mut _,
        iov_len: len,
    };
    let fd = pidfd.as_fd().as_raw_fd();
    let call = libc::SYS_process_madvise;
    // SAFETY: one valid part; the advice changes no content.
    match check(unsafe { libc::syscall(call, fd, &raw const part, 1, libc::MADV_COLD, 0) }) {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
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
