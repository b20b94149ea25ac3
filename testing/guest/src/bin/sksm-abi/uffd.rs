//! userfaultfd: merging a page is no write, a write to a merged page is one, and pages that are moved take what they are with
//! them, or stay.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::patience::{PATIENCE, deadline};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::{Counters, zero_pages_here};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{Flags, Pagemap};
use sksm_guest::memory::process::Child;
use sksm_guest::memory::userfault::{
    self, FEATURES_MOVE, FEATURES_RWP_ASYNC, FEATURES_WP, FEATURES_WP_ASYNC, IOCTL_WRITE_PROTECT,
    REGISTER_MISSING, REGISTER_RWP, REGISTER_WP, ioctl, open,
};
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::syscall::check;

use crate::expect::{one_page, zero_pages};
use crate::huge::huge;
use crate::pins::registered;

pub const TESTS: &[Test] = &[
    test("uffd/write-protection-is-kept", write_protection_is_kept),
    test("uffd/writes-are-reported-once", writes_are_reported_once),
    test("uffd/handler-hears-of-writes-only", handler_hears_of_writes),
    test("uffd/moved-zero-pages", moved_zero_pages),
    test("uffd/merged-pages-do-not-move", merged_do_not_move),
    test(
        "uffd/pinned-huge-pages-do-not-move",
        pinned_huge_do_not_move,
    ),
    test("uffd/accesses-stay-trapped", accesses_stay_trapped),
];

fn register(uffd: &File, map: &Map, mode: u64) -> Result<()> {
    userfault::register(uffd, (map.addr(), map.len()), mode).context("register")
}

/// Write-protects the mapping. What a write to it does, the features say: it waits for a handler, or, with asynchronous
/// protection, the kernel takes the bit in the page table entry away, and that is all.
fn track(map: &Map, features: u64) -> Result<File> {
    let uffd = open(features, "write protection")?;
    register(&uffd, map, REGISTER_WP)?;
    userfault::protect(&uffd, (map.addr(), map.len())).context("protect")?;
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

/// Merging is no access either. The first access takes the bit away, and would not if the page had been opened before.
fn accesses_stay_trapped() -> Result<()> {
    let contents = [5, 5, 5, 6, 0, 0];
    let map = Map::filled(&contents)?;
    let uffd = open(FEATURES_RWP_ASYNC, "traps for reads")?;
    register(&uffd, &map, REGISTER_RWP)?;
    userfault::trap(&uffd, (map.addr(), map.len())).context("trap")?;
    ensure!(untouched(&map)? == [true; 6], "before merging");
    map.merge()?;
    let marks = untouched(&map)?;
    ensure!(marks == [true; 6], "merging counts as access: {marks:?}");
    one_page(&map.pfns()?[..3])?;
    zero_pages(&map.part(4..6))?;
    map.expect(1, 5)?;
    map.expect(3, 6)?;
    map.expect(4, 0)?;
    let marks = untouched(&map)?;
    ensure!(
        marks == [true, false, true, false, false, true],
        "after reading pages 1, 3 and 4: {marks:?}"
    );
    for (page, id) in contents.into_iter().enumerate() {
        map.expect(page, id)?;
    }
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
    ioctl(uffd, IOCTL_WRITE_PROTECT, &mut [addr, len, 0]).context("unprotect")
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
        let deadline = deadline();
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

/// Moves a page to the same place of another mapping; the error number.
fn move_page(uffd: &File, from: &Map, to: &Map, page: usize) -> i32 {
    match userfault::move_pages(uffd, from.page(page), to.page(page), PAGE) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// Source and target of moves, the source merged, beside a page that shares its others.
fn movable(contents: &[u64]) -> Result<(File, Map, Map)> {
    let uffd = open(FEATURES_MOVE, "moving")?;
    let (from, to) = (Map::filled(contents)?, Map::anon(contents.len())?);
    to.no_huge();
    register(&uffd, &to, REGISTER_MISSING)?;
    from.merge()?;
    Ok((uffd, from, to))
}

/// A zero page that SKSM placed becomes an ordinary one when it is moved, and nobody counts it any longer.
fn moved_zero_pages() -> Result<()> {
    let (start, own) = (Counters::now()?, zero_pages_here()?);
    let counted = |wanted: i64, when: &str| -> Result<()> {
        let found = [start.change()?.pages_zero, zero_pages_here()? - own];
        ensure!(
            found == [wanted; 2],
            "{when}: of all and of this process {found:?} zero pages, not {wanted}"
        );
        Ok(())
    };
    let (uffd, from, to) = movable(&[0; 4])?;
    counted(4, "merged")?;
    for page in [0, 2] {
        let moved = move_page(&uffd, &from, &to, page);
        ensure!(moved == 0, "moving: error {moved}");
        to.expect(page, 0)?;
    }
    counted(2, "moved")?;
    to.fill(2, 6);
    to.expect(2, 6)?;
    // What was moved away is missing there, and reads as zeros again.
    from.expect_all(|_| 0)?;
    counted(2, "written")?;
    drop((from, to));
    counted(0, "unmapped")
}

/// A merged page belongs to others too, so the kernel does not move it, nor one that was published: they stay as they are.
fn merged_do_not_move() -> Result<()> {
    let (uffd, from, to) = movable(&[5, 5, 6])?;
    let before = from.pfns()?;
    for page in 0..3 {
        let moved = move_page(&uffd, &from, &to, page);
        ensure!(moved == libc::EBUSY, "moving page {page}: error {moved}");
    }
    ensure!(from.pfns()? == before, "refused, and changed");
    from.expect_all(|page| [5, 5, 6][page])?;
    // Written, they are ordinary pages.
    from.fill(0, 7);
    from.fill(2, 8);
    for (page, id) in [(0, 7), (2, 8)] {
        let moved = move_page(&uffd, &from, &to, page);
        ensure!(moved == 0, "moving page {page}: error {moved}");
        to.expect(page, id)?;
    }
    from.expect(1, 5)?;
    to.merge()?;
    to.expect(0, 7)?;
    to.expect(2, 8)
}

/// While a page of a huge one is pinned, the huge page cannot be split. The kernel says so, in place of trying for ever.
fn pinned_huge_do_not_move() -> Result<()> {
    // Skipped here if anything is lacking, as a child cannot be.
    let small = Map::filled(&[1])?;
    let what_it_takes = (
        huge(1, |_| 1)?,
        open(FEATURES_MOVE, "moving")?,
        registered(&small, 0..1)?,
    );
    drop(what_it_takes);
    let mover = Child::spawn(|_| {
        let from = huge(1, |page| page as u64)?;
        let ring = registered(&from, 7..8)?;
        let flags = Flags::of(from.pfn(100)?)?;
        ensure!(flags.huge(), "pinning split the huge page: {flags:x?}");
        let (uffd, to) = (open(FEATURES_MOVE, "moving")?, Map::anon(TABLE / PAGE)?);
        to.no_huge();
        register(&uffd, &to, REGISTER_MISSING)?;
        for page in [7, 100] {
            let moved = move_page(&uffd, &from, &to, page);
            ensure!(moved == libc::EBUSY, "moving page {page}: error {moved}");
        }
        from.expect_all(|page| page as u64)?;
        // Given back, which the kernel does when it gets to it, they move.
        ring.submitter().unregister_buffers()?;
        let deadline = deadline();
        for page in [7, 100] {
            while move_page(&uffd, &from, &to, page) != 0 {
                ensure!(Instant::now() < deadline, "page {page} does not move");
                std::thread::sleep(Duration::from_millis(10));
            }
            to.expect(page, page as u64)?;
        }
        from.expect_all(|page| {
            if [7, 100].contains(&page) {
                0
            } else {
                page as u64
            }
        })
    })?;
    ensure!(
        mover.pidfd()?.ends_within(PATIENCE)?,
        "the call does not end"
    );
    mover.join()
}
