//! Kinds of mappings: which are skipped, with success, and which merge.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use io_uring::IoUring;
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::file::{memfd, with_contents};
use sksm_guest::memory::map::{EXECUTE, Map, READ, WRITE};
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Pidfd;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::{copies, merge_gives, merged, one_page};
use crate::remote::errno_of_cold;

pub const TESTS: &[Test] = &[
    test("vma/shared-anonymous", shared_anonymous),
    test("vma/shared-memfd", shared_memfd),
    test("vma/shared-by-fork-of-shared", shared_with_child),
    test("vma/hugetlb", hugetlb),
    test("vma/memfd-secret", memfd_secret),
    test("vma/droppable", droppable),
    test("vma/physical-memory", physical_memory),
    test("vma/io_uring-ring", io_uring_ring),
    test("vma/aio-ring", aio_ring),
    test("vma/read-only", read_only),
    test("vma/executable", executable),
    test("vma/no-access", no_access),
    test("vma/several-some-incompatible", several),
    test("vma/whole-address-space", whole_address_space),
];

/// `MAP_DROPPABLE`, since Linux 6.11: memory that the kernel may drop, as a mapping type of its own.
const MAP_DROPPABLE: i32 = 8;

/// A mapping of at least two pages, filled here with equal content, must come through a merge untouched, while ordinary pages of
/// the same content in front of it and behind it merge.
fn left_alone(map: &Map) -> Result<()> {
    map.fill_all(|_| 11);
    let start = Counters::now()?;
    let before = Pagemap::own()?.entries(map.addr(), map.pages())?;
    merge_gives(0, map.addr(), map.len())?;
    let published = start.change()?.pages_unshared;
    ensure!(published == 0, "{published} pages were published");
    let control = merged(2, 11)?;
    merge_gives(0, map.addr(), map.len())?;
    let after = Pagemap::own()?.entries(map.addr(), map.pages())?;
    ensure!(
        before == after,
        "page table changed: {before:x?}, {after:x?}"
    );
    map.expect_all(|_| 11)?;
    map.fill_all(|_| 12);
    map.expect_all(|_| 12)?;
    control.expect_all(|_| 11)
}

fn shared_anonymous() -> Result<()> {
    left_alone(&Map::new(4, WRITE, MAP_SHARED | MAP_ANONYMOUS, None)?)
}

fn shared_memfd() -> Result<()> {
    let file = memfd(4)?;
    left_alone(&Map::new(4, WRITE, MAP_SHARED, Some(&file))?)
}

fn shared_with_child() -> Result<()> {
    let map = Map::new(4, WRITE, MAP_SHARED | MAP_ANONYMOUS, None)?;
    map.fill_all(|_| 3);
    let child = sksm_guest::memory::process::Child::spawn(|parent| {
        map.merge()?;
        parent.meet()?;
        map.expect_all(|_| 4)
    })?;
    child.pause()?;
    map.merge()?;
    map.fill_all(|_| 4);
    child.go()?;
    child.join()
}

fn hugetlb() -> Result<()> {
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    if fs::exists(POOL)? {
        fs::write(POOL, "2").context("cannot reserve huge pages")?;
    } else {
        return skip("no hugetlb in this kernel (CONFIG_HUGETLBFS)");
    }
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let map = Map::new(512, WRITE, flags, None).context("cannot map a huge page")?;
    left_alone(&map)
}

fn memfd_secret() -> Result<()> {
    // SAFETY: takes numbers only.
    let fd = match check(unsafe { libc::syscall(libc::SYS_memfd_secret, 0) }) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            return skip("no secret memory in this kernel (CONFIG_SECRETMEM)");
        }
        Err(error) => return Err(error).context("memfd_secret"),
    };
    // SAFETY: a new descriptor that nothing else owns.
    let file = unsafe { File::from_raw_fd(fd as i32) };
    file.set_len(4 * PAGE as u64)?;
    left_alone(&Map::new(4, WRITE, MAP_SHARED, Some(&file))?)
}

fn droppable() -> Result<()> {
    match Map::new(4, WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, None) {
        Ok(map) => left_alone(&map),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            skip("no droppable memory in this kernel (since Linux 6.11, 64-bit)")
        }
        Err(error) => Err(error.into()),
    }
}

/// A private mapping of physical memory has copies of its own where it was written, and still is not ours to touch.
fn physical_memory() -> Result<()> {
    const BIOS: usize = 0xf0000;
    let Ok(memory) = File::open("/dev/mem") else {
        return skip("no /dev/mem in this kernel (CONFIG_DEVMEM)");
    };
    let map = Map::at(0, 2, WRITE, MAP_PRIVATE, Some(&memory), BIOS / PAGE);
    left_alone(&map.context("cannot map the BIOS")?)
}

fn io_uring_ring() -> Result<()> {
    let mut ring = match IoUring::new(256) {
        Ok(ring) => ring,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            return skip("no io_uring in this kernel (CONFIG_IO_URING)");
        }
        Err(error) => return Err(error).context("io_uring"),
    };
    let control = merged(2, 21)?;
    merge_lines_with("io_uring")?;
    // The ring still works.
    for tag in 0..300 {
        let nop = io_uring::opcode::Nop::new().build().user_data(tag);
        // SAFETY: a request without memory.
        unsafe { ring.submission().push(&nop) }?;
        ring.submit_and_wait(1)?;
        let done = ring.completion().next().context("no completion")?;
        ensure!(done.user_data() == tag, "wrong completion");
    }
    control.expect_all(|_| 21)
}

fn aio_ring() -> Result<()> {
    let mut context: libc::c_ulong = 0;
    // SAFETY: a place for the context id, which is the ring's address.
    match check(unsafe { libc::syscall(libc::SYS_io_setup, 128, &mut context) }) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            return skip("no asynchronous I/O in this kernel (CONFIG_AIO)");
        }
        Err(error) => return Err(error).context("io_setup"),
    }
    let entries = || Pagemap::own()?.entries(context as usize, 1);
    let before = entries()?;
    merge_gives(0, context as usize, PAGE)?;
    ensure!(entries()? == before, "the ring's page changed");
    // SAFETY: the context made above.
    check(unsafe { libc::syscall(libc::SYS_io_destroy, context) }).context("io_destroy")?;
    merged(2, 21).map(drop)
}

/// Merges every mapping of this process whose line in maps has this word; there must be one.
fn merge_lines_with(word: &str) -> Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut any = false;
    for line in maps.lines().filter(|line| line.contains(word)) {
        let (start, end) = range(line)?;
        merge_gives(0, start, end - start).with_context(|| line.to_owned())?;
        any = true;
    }
    ensure!(any, "nothing named {word} is mapped");
    Ok(())
}

fn range(line: &str) -> Result<(usize, usize)> {
    let (start, rest) = line.split_once('-').context("maps")?;
    let (end, _) = rest.split_once(' ').context("maps")?;
    Ok((
        usize::from_str_radix(start, 16)?,
        usize::from_str_radix(end, 16)?,
    ))
}

fn read_only() -> Result<()> {
    let map = Map::filled(&[13; 4])?;
    map.protect(READ)?;
    map.merge()?;
    one_page(&map.pfns()?)?;
    map.expect_all(|_| 13)?;
    map.protect(WRITE)?;
    map.fill(2, 14);
    map.expect_all(|page| if page == 2 { 14 } else { 13 })
}

fn executable() -> Result<()> {
    let map = Map::filled(&[13; 4])?;
    map.protect(EXECUTE)?;
    map.merge()?;
    one_page(&map.pfns()?)?;
    map.expect_all(|_| 13)
}

/// Whether such pages merge is open, what they hold is not.
fn no_access() -> Result<()> {
    let map = Map::filled(&[15, 15, 0, 16])?;
    map.protect(libc::PROT_NONE)?;
    merge_gives(0, map.addr(), map.len())?;
    map.protect(WRITE)?;
    map.expect_all(|page| [15, 15, 0, 16][page])?;
    map.fill_all(|page| 30 + page as u64);
    map.expect_all(|page| 30 + page as u64)
}

/// One call over mappings of which some are not for merging.
fn several() -> Result<()> {
    let file = with_contents(&[17; 2])?;
    let map = Map::filled(&[17; 12])?;
    let fixed = |page, flags, file| {
        let flags = flags | libc::MAP_FIXED;
        Map::at(map.page(page), 2, WRITE, flags, file, 0).map(std::mem::forget)
    };
    fixed(2, MAP_SHARED | MAP_ANONYMOUS, None)?;
    fixed(4, MAP_PRIVATE, Some(&file))?;
    fixed(6, MAP_SHARED, Some(&file))?;
    map.fill(2, 17);
    map.fill(3, 17);
    map.expect_all(|_| 17)?; // Faults all of it in.
    map.protect_pages(8..10, READ)?;
    let before = map.pfns()?;
    map.merge()?;
    let after = map.pfns()?;
    ensure!(before[2..8] == after[2..8], "shared or file pages changed");
    one_page(&[&after[..2], &after[8..]].concat())?;
    ensure!(copies(&after) == 1 + 2 + 2, "{} pages", copies(&after));
    map.expect_all(|_| 17)
}

/// All that an ordinary program has mapped, stack and vdso too, merged between two of its steps; it goes on and ends well.
fn whole_address_space() -> Result<()> {
    let script = "echo ready; read line; n=0; while [ $n -lt 500 ]; do n=$((n + 1)); list=\"$list $n\"; done; echo ${#list}";
    let start = Counters::now()?;
    let shell = || {
        Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    };
    let mut shells = [shell()?, shell()?];
    for shell in &mut shells {
        let mut ready = [0; 6];
        shell
            .stdout
            .as_mut()
            .context("stdout")?
            .read_exact(&mut ready)?;
        let maps = fs::read_to_string(format!("/proc/{}/maps", shell.id()))?;
        let pidfd = Pidfd::open(shell.id() as i32)?;
        for line in maps.lines() {
            let (start, end) = range(line)?;
            // The vsyscall page, and UML's vDSO, are beyond what a process may name.
            if errno_of_cold(&pidfd, start, end - start) == libc::EFAULT {
                continue;
            }
            let advised = sksm::merge_remote(pidfd.as_fd(), &[(start, end - start)])
                .with_context(|| line.to_owned())?;
            ensure!(advised == end - start, "{line}: {advised} bytes advised");
        }
    }
    let sharing = start.change()?.pages_sharing;
    ensure!(sharing > 0, "two shells share nothing");
    for mut shell in shells {
        shell.stdin.take().context("stdin")?.write_all(b"go on\n")?;
        let output = shell.wait_with_output()?;
        ensure!(
            output.status.success() && output.stdout == b"1892\n",
            "a merged shell: {output:?}"
        );
    }
    Ok(())
}
