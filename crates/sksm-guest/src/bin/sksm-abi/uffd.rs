//! Write tracking by userfaultfd: merging a page is no write, and a write to a merged page is one.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::Map;
use sksm_guest::pagemap::Pagemap;
use sksm_guest::process::check;
use sksm_guest::report::{Test, skip, test};

use crate::expect::{one_page, zero_pages};

pub const TESTS: &[Test] = &[test(
    "uffd/write-protection-is-kept",
    write_protection_is_kept,
)];

// From linux/userfaultfd.h.
const API: u64 = 0xaa;
const FEATURES_WP_ASYNC: u64 = 1 << 15 | 1 << 13;
const IOCTL_API: u64 = 0xc018_aa3f;
const IOCTL_REGISTER: u64 = 0xc020_aa00;
const IOCTL_WRITE_PROTECT: u64 = 0xc018_aa06;
const REGISTER_WP: u64 = 2;
const PROTECT: u64 = 1;

fn ioctl(uffd: &File, request: u64, words: &mut [u64; 4]) -> std::io::Result<()> {
    // SAFETY: none of the structures that these requests take is longer than four words.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), request as _, words.as_mut_ptr()) }).map(drop)
}

/// Tracks writes to the mapping in the kernel: no handler, only a bit in each page table entry that a write clears.
fn track(map: &Map) -> Result<File> {
    // SAFETY: takes numbers only.
    let fd = match check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) }) {
        Ok(fd) => fd as i32,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            return skip("no userfaultfd in this kernel (CONFIG_USERFAULTFD)");
        }
        Err(error) => return Err(error).context("userfaultfd"),
    };
    // SAFETY: a new descriptor that nothing else owns.
    let uffd = unsafe { File::from_raw_fd(fd) };
    if ioctl(&uffd, IOCTL_API, &mut [API, FEATURES_WP_ASYNC, 0, 0]).is_err() {
        return skip("no write protection by userfaultfd on this architecture");
    }
    let (addr, len) = (map.addr() as u64, map.len() as u64);
    ioctl(&uffd, IOCTL_REGISTER, &mut [addr, len, REGISTER_WP, 0]).context("register")?;
    ioctl(&uffd, IOCTL_WRITE_PROTECT, &mut [addr, len, PROTECT, 0]).context("protect")?;
    Ok(uffd)
}

fn untouched(map: &Map) -> Result<Vec<bool>> {
    let entries = Pagemap::own()?.entries(map.addr(), map.pages())?;
    Ok(entries.iter().map(|entry| entry.uffd_wp()).collect())
}

fn write_protection_is_kept() -> Result<()> {
    let map = Map::filled(&[5, 5, 5, 6, 0, 0])?;
    let uffd = track(&map)?;
    ensure!(untouched(&map)? == [true; 6], "before merging");
    map.merge()?;
    let marks = untouched(&map)?;
    ensure!(marks == [true; 6], "merging counts as writing: {marks:?}");
    one_page(&map.pfns()?[..3])?;
    zero_pages(&map.part(4..6))?;
    map.put(1, 0, 9);
    map.put(3, 0, 9);
    map.put(4, 0, 9);
    let marks = untouched(&map)?;
    ensure!(
        marks == [true, false, true, false, false, true],
        "after writing pages 1, 3 and 4: {marks:?}"
    );
    for (page, id) in [5, 5, 5, 6, 0, 0].into_iter().enumerate() {
        map.expect_after(page, 1, id)?;
    }
    drop(uffd);
    map.merge()?;
    ensure!(map.get(1, 0) == 9 && map.get(0, 0) != 9, "contents");
    Ok(())
}
