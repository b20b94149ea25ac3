//! Write tracking by userfaultfd: merging a page is no write, and a write to a merged page is one.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::{Map, PAGE};
use sksm_guest::pagemap::Pagemap;
use sksm_guest::process::check;
use sksm_guest::report::{Test, skip, test};

use crate::expect::{one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test("uffd/write-protection-is-kept", write_protection_is_kept),
    test("uffd/writes-are-reported-once", writes_are_reported_once),
    test("uffd/handler-hears-of-writes-only", handler_hears_of_writes),
];

// From linux/userfaultfd.h.
const API: u64 = 0xaa;
const FEATURES_WP: u64 = 1;
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

/// Write-protects the mapping. What a write to it does, the features say: it waits for a handler, or, with asynchronous
/// protection, the kernel takes the bit in the page table entry away, and that is all.
fn track(map: &Map, features: u64) -> Result<File> {
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
    if ioctl(&uffd, IOCTL_API, &mut [API, features, 0, 0]).is_err() {
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
    let uffd = track(&map, FEATURES_WP_ASYNC)?;
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

/// The pages written since they were reported last, by the ioctl that reports and protects them again in one go.
fn written(map: &Map) -> Result<Vec<usize>> {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    const PROTECT_AND_REQUIRE: u64 = 3;
    const WRITTEN: u64 = 2;
    let mut regions = [[0u64; 3]; 32];
    let (start, end) = (map.addr() as u64, (map.addr() + map.len()) as u64);
    // struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all, any, and what to return.
    let mut scan = [0u64; 12];
    scan[..4].copy_from_slice(&[96, PROTECT_AND_REQUIRE, start, end]);
    scan[5] = regions.as_mut_ptr() as u64;
    scan[6] = regions.len() as u64;
    scan[9] = WRITTEN;
    scan[11] = WRITTEN;
    let pagemap = File::open("/proc/self/pagemap")?;
    // SAFETY: a valid request with room for as many regions as it says.
    let found =
        check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, scan.as_mut_ptr()) })
            .context("PAGEMAP_SCAN")?;
    let page = |addr: u64| (addr as usize - map.addr()) / PAGE;
    let found = &regions[..found as usize];
    Ok(found
        .iter()
        .flat_map(|[start, end, _]| page(*start)..page(*end))
        .collect())
}

fn writes_are_reported_once() -> Result<()> {
    let map = Map::filled(&[5, 5, 5, 6, 0, 0, 5])?;
    let _uffd = track(&map, FEATURES_WP_ASYNC)?;
    let reports = |wanted: &[usize], when: &str| -> Result<()> {
        let found = written(&map)?;
        ensure!(found == wanted, "{when}: pages {found:?}, not {wanted:?}");
        Ok(())
    };
    reports(&[], "protected")?;
    // Written before the merge, and not reported yet.
    map.put(6, 0, map.get(5, 0));
    map.fill(6, 5);
    map.merge()?;
    one_page(&[map.pfns()?[..3].to_vec(), vec![map.pfn(6)?]].concat())?;
    reports(&[6], "merged")?;
    reports(&[], "reported")?;
    for page in [0, 3, 4] {
        map.put(page, 7, 9);
        map.put(page, 8, 9);
    }
    reports(&[0, 3, 4], "written")?;
    reports(&[], "reported again")?;
    map.merge()?;
    reports(&[], "merged again")?;
    map.fill(1, 5);
    map.merge()?;
    reports(&[1], "written and merged")?;
    reports(&[], "reported for the last time")?;
    map.expect(2, 5)?;
    map.expect(5, 0)
}

/// Lets writes through, also those that wait.
fn unprotect(uffd: &File, map: &Map) -> Result<()> {
    let (addr, len) = (map.addr() as u64, map.len() as u64);
    ioctl(uffd, IOCTL_WRITE_PROTECT, &mut [addr, len, 0, 0]).context("unprotect")
}

/// Where the next write waits; None if no write does.
fn waiting_write(uffd: &File, map: &Map) -> Result<Option<usize>> {
    const PAGE_FAULT: u64 = 0x12;
    const WRITE_PROTECTED: u64 = 1 << 1;
    let mut message = [0; 32];
    match (&*uffd).read_exact(&mut message) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error).context("userfaultfd"),
    }
    let word = |index: usize| {
        let bytes = message[index * 8..][..8].try_into();
        u64::from_ne_bytes(bytes.expect("eight bytes"))
    };
    let (event, flags, addr) = (word(0) & 0xff, word(1), word(2));
    ensure!(
        event == PAGE_FAULT && flags & WRITE_PROTECTED != 0,
        "event {event:#x}, flags {flags:#x}"
    );
    Ok(Some((addr as usize - map.addr()) / PAGE))
}

/// A handler in user space: it hears of each page's first write, merged or not, and of nothing else.
fn handler_hears_of_writes() -> Result<()> {
    let map = Map::filled(&[5, 5, 5, 6, 0])?;
    let uffd = track(&map, FEATURES_WP)?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::fcntl(uffd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    map.merge()?;
    one_page(&map.pfns()?[..3])?;
    zero_pages(&map.part(4..5))?;
    map.expect_all(|page| [5, 5, 5, 6, 0][page])?;
    let early = waiting_write(&uffd, &map)?;
    ensure!(
        early.is_none(),
        "merging or reading counts as writing: page {early:?}"
    );
    ensure!(
        untouched(&map)? == [true; 5],
        "merging has unprotected pages"
    );
    let pages = [1, 3, 4];
    let writer = || {
        for page in pages {
            map.put(page, 0, 9);
            map.put(page, 1, 9);
        }
    };
    let handle = |wanted: usize| -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let found = loop {
            match waiting_write(&uffd, &map)? {
                None if Instant::now() < deadline => std::thread::yield_now(),
                found => break found,
            }
        };
        ensure!(found == Some(wanted), "a write to {found:?}, not {wanted}");
        let shown = map.get(wanted, 0);
        ensure!(
            shown != 9,
            "page {wanted} was written before the handler said so"
        );
        unprotect(&uffd, &map.part(wanted..wanted + 1))
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(writer);
        let handled = pages.into_iter().try_for_each(handle);
        if handled.is_err() {
            // Else the writer waits for ever.
            unprotect(&uffd, &map)?;
        }
        writer.join().expect("the writer panicked");
        handled
    })?;
    let late = waiting_write(&uffd, &map)?;
    ensure!(late.is_none(), "reported twice: page {late:?}");
    let marks = untouched(&map)?;
    ensure!(
        marks == [true, false, true, false, false],
        "marks {marks:?}"
    );
    map.merge()?;
    let late = waiting_write(&uffd, &map)?;
    ensure!(late.is_none(), "merging counts as writing: page {late:?}");
    ensure!(untouched(&map)? == marks, "merging has changed marks");
    for (page, id) in [5, 5, 5, 6, 0].into_iter().enumerate() {
        map.expect_after(page, 2, id)?;
    }
    Ok(())
}
