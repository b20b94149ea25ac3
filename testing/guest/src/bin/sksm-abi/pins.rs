//! Pages that someone else holds: O_DIRECT, vmsplice, io_uring. They are left exactly as they are.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::disk::Disk;
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::pipe;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::{apart, copies, merged, merging, one_page};
use crate::writers::{beside, for_a_while};

pub const TESTS: &[Test] = &[
    test("pins/vmsplice", vmsplice),
    test("pins/vmsplice-of-merged", vmsplice_of_merged),
    test("pins/io_uring-buffer", io_uring_buffer),
    test("pins/o_direct-reads", direct_reads),
    test("pins/o_direct-read-into-merged", direct_read_into_merged),
    test("pins/o_direct-writes", direct_writes),
];

/// Puts a reference to pages into a pipe.
pub fn splice(map: &Map, pages: usize, into: &File) -> Result<()> {
    let part = libc::iovec {
        iov_base: map.addr() as *mut _,
        iov_len: pages * PAGE,
    };
    // SAFETY: one valid part, which stays mapped.
    let len = check(unsafe { libc::vmsplice(into.as_raw_fd(), &part, 1, 0) })?;
    ensure!(
        len as usize == pages * PAGE,
        "{len} bytes went into the pipe"
    );
    Ok(())
}

fn vmsplice() -> Result<()> {
    let (mut out, into) = pipe()?;
    let map = Map::filled(&[5; 6])?;
    let before = map.pfns()?;
    splice(&map, 2, &into)?;
    let start = Counters::now()?;
    map.merge()?;
    let after = map.pfns()?;
    ensure!(before[..2] == after[..2], "pages in the pipe were replaced");
    one_page(&after[2..])?;
    ensure!(copies(&after) == 3, "{} copies", copies(&after));
    ensure!(start.change()?.pages_busy == 2, "{:?}", start.change()?);
    // The pages are the pipe's still, so it shows what is written now.
    map.fill(0, 6);
    let mut bytes = vec![0; 2 * PAGE];
    out.read_exact(&mut bytes)?;
    ensure!(
        bytes[..PAGE] == map.bytes()[..PAGE],
        "the pipe has lost its page"
    );
    ensure!(
        bytes[PAGE..] == map.bytes()[PAGE..2 * PAGE],
        "the pipe has lost its page"
    );
    map.expect_all(|page| if page == 0 { 6 } else { 5 })?;
    // Once the pipe is empty they merge.
    map.fill(0, 5);
    map.merge()?;
    one_page(&map.pfns()?)
}

/// A pipe holds a merged page as it was when it went in, whatever its owners write, the last one too.
fn vmsplice_of_merged() -> Result<()> {
    for owners in [1, 3] {
        let (mut out, into) = pipe()?;
        let map = merged(owners, 5)?;
        let right = map.bytes()[..PAGE].to_vec();
        splice(&map, 1, &into)?;
        (0..owners).for_each(|page| map.fill(page, 6 + page as u64));
        map.expect_all(|page| 6 + page as u64)?;
        let mut bytes = vec![0; PAGE];
        out.read_exact(&mut bytes)?;
        ensure!(
            bytes == right,
            "{owners} owners wrote, and the pipe holds what it was not given"
        );
        map.merge()?;
        map.expect_all(|page| 6 + page as u64)?;
    }
    Ok(())
}

/// An io_uring to which pages of a mapping are registered: so they are pinned until it is dropped, if not unregistered. The
/// mapping has to outlive that.
pub fn registered(map: &Map, pages: Range<usize>) -> Result<IoUring> {
    let ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            return skip("no io_uring in this kernel (CONFIG_IO_URING)");
        }
        Err(error) => return Err(error).context("io_uring"),
    };
    let buffer = libc::iovec {
        iov_base: map.page(pages.start) as *mut _,
        iov_len: pages.len() * PAGE,
    };
    // SAFETY: the buffer stays mapped until after it is unregistered.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.context("register")?;
    Ok(ring)
}

/// A registered buffer is pinned for long; a read that is under way arrives in it.
fn io_uring_buffer() -> Result<()> {
    let map = Map::filled(&[5; 4])?;
    let mut ring = registered(&map, 0..2)?;
    let (out, mut into) = pipe()?;
    let read = opcode::ReadFixed::new(
        types::Fd(out.as_raw_fd()),
        map.addr() as *mut u8,
        PAGE as u32,
        0,
    );
    // SAFETY: into the registered buffer.
    unsafe { ring.submission().push(&read.build()) }?;
    ring.submit()?;
    let before = map.pfns()?;
    let start = Counters::now()?;
    map.merge()?;
    let after = map.pfns()?;
    ensure!(before[..2] == after[..2], "registered pages were replaced");
    one_page(&after[2..])?;
    ensure!(start.change()?.pages_busy == 2, "{:?}", start.change()?);
    into.write_all(&Map::filled(&[8])?.bytes())?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().context("no completion")?;
    ensure!(done.result() == PAGE as i32, "read: {}", done.result());
    map.expect_all(|page| if page == 0 { 8 } else { 5 })?;
    ring.submitter().unregister_buffers()?;
    map.fill(0, 5);
    // The kernel gives registered pages back when it gets to it.
    let deadline = deadline();
    loop {
        map.merge()?;
        if copies(&map.pfns()?) == 1 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "pages that were unregistered do not merge"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

const FIRST: u64 = 1000;
const DISK_PAGES: usize = 64;

/// Page n holds content `FIRST + n`.
fn disk() -> Result<Disk> {
    let contents: Vec<u64> = (0..DISK_PAGES as u64).map(|page| FIRST + page).collect();
    Disk::open(&contents)
}

/// Reads pages of the disk straight into pages of the mapping.
fn read(disk: &Disk, from: usize, map: &Map, page: usize, pages: usize) -> Result<()> {
    // SAFETY: whole pages of the mapping; other threads only merge them.
    let buffer = unsafe { std::slice::from_raw_parts_mut(map.page(page) as *mut u8, pages * PAGE) };
    Ok(disk.read_exact_at(buffer, (from * PAGE) as u64)?)
}

fn direct_reads() -> Result<()> {
    let disk = disk()?;
    const PAGES: usize = 32;
    const AT_ONCE: usize = 4;
    let map = Map::filled(&[5; PAGES])?;
    let read_once = |round: u64| {
        let page = round as usize * AT_ONCE % PAGES;
        let from = round as usize * 3 % (DISK_PAGES - AT_ONCE);
        // Equal pages, so that the merge wants them.
        (page..page + AT_ONCE).for_each(|page| map.fill(page, 5));
        read(&disk, from, &map, page, AT_ONCE)?;
        (0..AT_ONCE).try_for_each(|read| {
            map.expect(page + read, FIRST + (from + read) as u64)
                .with_context(|| format!("read {round} was lost"))
        })
    };
    merging(|| beside(1, || map.merge(), |_| for_a_while(read_once)))
}

fn direct_read_into_merged() -> Result<()> {
    let disk = disk()?;
    let map = merged(6, 5)?;
    read(&disk, 10, &map, 2, 2)?;
    let right = |page: usize| match page {
        2 | 3 => FIRST + 8 + page as u64,
        _ => 5,
    };
    map.expect_all(right)?;
    map.merge()?;
    map.expect_all(right)?;
    let pfns = map.pfns()?;
    apart(&pfns[1..4])?;
    one_page(&[pfns[0], pfns[1], pfns[4], pfns[5]])
}

/// Pages that are being written to a disk while they merge arrive there as they are.
fn direct_writes() -> Result<()> {
    let disk = disk()?;
    let map = Map::filled(&[5; 8])?;
    let write = |round: u64| {
        let id = |page: usize| round + page as u64 / 3;
        map.fill_all(id);
        // SAFETY: all of the mapping, which nobody writes meanwhile.
        let whole = unsafe { std::slice::from_raw_parts(map.addr() as *const u8, map.len()) };
        disk.write_all_at(whole, 0)?;
        let back = Map::anon(8)?;
        read(&disk, 0, &back, 0, 8)?;
        back.expect_all(id)
            .with_context(|| format!("write {round}"))
    };
    merging(|| beside(1, || map.merge(), |_| for_a_while(write)))
}
