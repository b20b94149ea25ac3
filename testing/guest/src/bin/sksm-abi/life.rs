//! What can happen to merged memory: moving, dropping, locking, exec, exit, writes from outside.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::map::{EXECUTE, Map, READ, WRITE};
use sksm_guest::memory::process::{Child, Ended};
use sksm_guest::page::PAGE;
use sksm_guest::syscall::check;

use crate::expect::{merged, one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test("life/mremap", mremap),
    test("life/mremap-then-merge", mremap_then_merge),
    test("life/munmap", munmap),
    test("life/dontneed", dontneed),
    test("life/free", free),
    test("life/mprotect", mprotect),
    test("life/mlock", mlock),
    test("life/vma-split", vma_split),
    test("life/exit", exit),
    test("life/exec", exec),
    test("life/write-by-proc-mem", write_by_proc_mem),
    test(
        "life/write-by-proc-mem-into-text",
        write_by_proc_mem_into_text,
    ),
    test(
        "life/write-by-process_vm_writev",
        write_by_process_vm_writev,
    ),
    test("life/write-by-ptrace", write_by_ptrace),
    test("life/write-by-read", write_by_read),
];

fn mremap() -> Result<()> {
    let one = merged(4, 5)?;
    let other = merged(4, 5)?;
    let page = one.pfn(0)?;
    let one = one.moved()?;
    ensure!(one.pfn(3)? == page, "the page changed");
    one.fill(0, 6);
    one.expect_all(|page| if page == 0 { 6 } else { 5 })?;
    other.expect_all(|_| 5)?;
    drop(other);
    one.expect(3, 5)
}

fn mremap_then_merge() -> Result<()> {
    let other = merged(2, 5)?;
    let map = Map::filled(&[5; 4])?.moved()?;
    map.merge()?;
    one_page(&[map.pfns()?, other.pfns()?].concat())?;
    let map = map.moved()?;
    map.fill(1, 7);
    map.merge()?;
    other.expect_all(|_| 5)?;
    map.expect_all(|page| if page == 1 { 7 } else { 5 })
}

fn munmap() -> Result<()> {
    let start = Counters::now()?;
    let map = merged(6, 5)?;
    map.unmap_pages(1..5)?;
    let change = start.change()?;
    ensure!(
        (change.pages_shared, change.pages_sharing) == (1, 1),
        "{change:?}"
    );
    map.expect(0, 5)?;
    map.expect(5, 5)?;
    drop(map);
    let change = start.change()?;
    ensure!(
        (change.pages_shared, change.pages_sharing) == (0, 0),
        "{change:?}"
    );
    Ok(())
}

fn dontneed() -> Result<()> {
    let map = merged(4, 5)?;
    map.advise_pages(1..3, libc::MADV_DONTNEED)?;
    map.expect_all(|page| [5, 0, 0, 5][page])?;
    map.fill(1, 5);
    map.merge()?;
    one_page(&[map.pfn(0)?, map.pfn(1)?, map.pfn(3)?])
}

/// Freed pages read as before or as zeros until they are written, and what is written then stays.
fn free() -> Result<()> {
    let map = merged(8, 5)?;
    map.advise_pages(0..6, libc::MADV_FREE)?;
    map.fill(0, 6);
    map.fill(1, 5);
    map.merge()?;
    map.expect(0, 6)?;
    map.expect(1, 5)?;
    for page in 2..6 {
        map.expect(page, 5).or_else(|_| map.expect(page, 0))?;
    }
    map.expect(6, 5)?;
    // Freed first, merged then: a merged page has more than one owner, so it is no longer free.
    let map = Map::filled(&[5; 4])?;
    map.advise(libc::MADV_FREE)?;
    map.merge()?;
    for page in 0..4 {
        map.expect(page, 5).or_else(|_| map.expect(page, 0))?;
    }
    map.fill_all(|page| page as u64);
    map.expect_all(|page| page as u64)
}

fn mprotect() -> Result<()> {
    let map = merged(4, 5)?;
    for prot in [READ, EXECUTE, WRITE, libc::PROT_NONE, READ, WRITE] {
        map.protect(prot)?;
    }
    one_page(&map.pfns()?)?;
    map.fill(0, 6);
    map.expect_all(|page| if page == 0 { 6 } else { 5 })
}

fn mlock() -> Result<()> {
    let map = Map::filled(&[5, 5, 0, 6])?;
    // SAFETY: a range of this process.
    check(unsafe { libc::mlock(map.addr() as *const _, map.len()) })?;
    map.merge()?;
    one_page(&[map.pfn(0)?, map.pfn(1)?])?;
    map.put(1, 1, 1);
    map.merge()?;
    // SAFETY: as above.
    check(unsafe { libc::munlock(map.addr() as *const _, map.len()) })?;
    map.fill(0, 8);
    map.expect(0, 8)?;
    ensure!(map.get(1, 1) == 1, "a write was lost");
    map.expect_after(1, 2, 5)?;
    map.expect(2, 0)?;
    map.expect(3, 6)
}

/// Mappings that split and join again around merged pages.
fn vma_split() -> Result<()> {
    let map = merged(64, 5)?;
    for page in (0..64).step_by(2) {
        map.protect_pages(page..page + 1, READ)?;
    }
    map.merge()?;
    (1..64).step_by(2).for_each(|page| map.fill(page, 6));
    map.protect(WRITE)?;
    map.merge()?;
    map.expect_all(|page| 5 + page as u64 % 2)?;
    (0..64).for_each(|page| map.fill(page, 5));
    map.merge()?;
    one_page(&map.pfns()?)
}

fn exit() -> Result<()> {
    let start = Counters::now()?;
    let map = merged(2, 5)?;
    for _ in 0..20 {
        Child::spawn(|_| merged(100, 5).map(std::mem::forget))?.join()?;
    }
    let change = start.change()?;
    ensure!(
        (change.pages_shared, change.pages_sharing) == (1, 1),
        "{change:?}"
    );
    map.expect_all(|_| 5)
}

fn exec() -> Result<()> {
    let map = merged(2, 5)?;
    let child = Child::spawn(|_| {
        std::mem::forget(merged(50, 5)?);
        Err(Command::new("/bin/sh").args(["-c", "exit 7"]).exec().into())
    })?;
    let ended = child.ended()?;
    ensure!(ended == Ended::Exit(7), "the new program: {ended}");
    map.expect_all(|_| 5)
}

/// Pages 0 and 1 are merged; something writes content 6 to page 0.
fn expect_copied(map: &Map) -> Result<()> {
    map.expect(0, 6)?;
    map.expect(1, 5)?;
    ensure!(map.pfn(0)? != map.pfn(1)?, "written without a copy");
    Ok(())
}

fn source() -> Result<Map> {
    Map::filled(&[6])
}

fn write_by_proc_mem() -> Result<()> {
    let map = merged(2, 5)?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&source()?.bytes(), map.addr() as u64)?;
    expect_copied(&map)
}

/// A debugger's write: it goes through although the mapping is not writable.
fn write_by_proc_mem_into_text() -> Result<()> {
    let map = Map::filled(&[5; 3])?;
    map.protect(EXECUTE)?;
    map.merge()?;
    one_page(&map.pfns()?)?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&source()?.bytes(), map.addr() as u64)?;
    expect_copied(&map)?;
    map.expect(2, 5)
}

fn write_by_process_vm_writev() -> Result<()> {
    let map = merged(2, 5)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        expect_copied(&map)
    })?;
    child.pause()?;
    let from = source()?;
    let part = |map: &Map| libc::iovec {
        iov_base: map.addr() as *mut _,
        iov_len: PAGE,
    };
    let (local, remote) = (part(&from), part(&map));
    // SAFETY: one valid part on each side.
    let written = check(unsafe { libc::process_vm_writev(child.pid(), &local, 1, &remote, 1, 0) })?;
    ensure!(written == PAGE as isize, "{written} bytes written");
    child.go()?;
    child.join()?;
    // The child's write is not ours.
    map.expect_all(|_| 5)
}

fn write_by_ptrace() -> Result<()> {
    let map = merged(2, 5)?;
    map.protect(READ)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        ensure!(map.get(0, 9) == 77, "the tracer's write is lost");
        map.expect_after(0, 10, 5)?;
        map.expect(1, 5)
    })?;
    child.pause()?;
    let address = (map.addr() + 9 * 8) as *mut libc::c_void;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: our own child; nothing of this process is written.
    check(unsafe { libc::ptrace(libc::PTRACE_ATTACH, child.pid(), none, none) })?;
    // SAFETY: no status is asked for.
    check(unsafe { libc::waitpid(child.pid(), std::ptr::null_mut(), 0) })?;
    // SAFETY: the child's memory, which it expects to be written there.
    check(unsafe { libc::ptrace(libc::PTRACE_POKEDATA, child.pid(), address, 77usize) })?;
    // SAFETY: as for attaching.
    check(unsafe { libc::ptrace(libc::PTRACE_DETACH, child.pid(), none, none) })?;
    child.go()?;
    child.join()?;
    map.expect_all(|_| 5)
}

/// The kernel writes to user memory on behalf of this process.
fn write_by_read() -> Result<()> {
    let map = merged(3, 5)?;
    let zero = File::open("/dev/zero")?;
    // SAFETY: the bytes of page 1, accessed in no other way meanwhile.
    let page = unsafe { std::slice::from_raw_parts_mut(map.page(1) as *mut u8, PAGE) };
    zero.read_exact_at(page, 0)?;
    map.expect_all(|page| [5, 0, 5][page])?;
    map.merge()?;
    let middle = Map::filled(&[0])?;
    middle.merge()?;
    zero_pages(&middle)?;
    one_page(&[map.pfn(1)?, middle.pfn(0)?])
}
