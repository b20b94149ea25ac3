//! What a process has written to a private mapping outlives whatever becomes of the file, truncation excepted. Zeros are content
//! there like any other: mm takes a zero page in a file's mapping for nothing of the process's.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use libc::{MADV_MERGEABLE, MAP_FIXED, MAP_PRIVATE, MAP_SHARED};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::disk::Disk;
use sksm_guest::machine::fuse::OneFile;
use sksm_guest::machine::sysfs::{KSM, SKSM, zero_pages_here};
use sksm_guest::memory::content::content;
use sksm_guest::memory::file::with_contents;
use sksm_guest::memory::map::{Map, READ, WRITE};
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::{Child, Ended};
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::{apart, one_page};
use crate::ksm::{scans, unthrottled};

pub const TESTS: &[Test] = &[
    test("file/zeros-merge-as-content", zeros_are_content),
    test("file/zeros-survive-punch", || {
        survive(&with_contents(&FILE)?, merged, punched)
    }),
    test("file/zeros-survive-punch-in-a-child", of_a_child),
    test("file/zeros-survive-direct-write", direct_write),
    test("file/zeros-survive-discard", discard),
    test("file/zeros-survive-cache-invalidation", cache_invalidation),
    test("file/zeros-survive-collapse", collapse),
    test("file/zeros-go-with-truncation", truncation),
    test("ksm/zeros-survive-punch", || {
        survive(&with_contents(&FILE)?, merged_by_ksm, punched)
    }),
];

/// The file before and after, page by page.
const FILE: [u64; 6] = [31, 32, 33, 34, 35, 36];
const ANEW: [u64; 6] = [41, 42, 43, 44, 45, 46];
/// What the process has written to the pages that follow the first, which it only reads.
const WRITTEN: [u64; 5] = [0, 0, 7, 7, 0];

fn mapped(file: &File) -> Result<Map> {
    Map::new(FILE.len(), WRITE, MAP_PRIVATE, Some(file)).context("mmap of a file")
}

/// A private mapping of which all but the first page is written. The first stays the file's and mapped: most ways to drop what is
/// cached of a file look for that first.
fn written(file: &File) -> Result<Map> {
    let map = mapped(file)?;
    map.get(0, 0);
    for (page, id) in WRITTEN.into_iter().enumerate() {
        map.fill(1 + page, id);
    }
    Ok(map)
}

fn expect_written(map: &Map) -> Result<()> {
    (WRITTEN.into_iter().enumerate()).try_for_each(|(page, id)| map.expect(1 + page, id))
}

fn merged(map: &Map) -> Result<()> {
    map.merge()?;
    one_page(&map.pfns()?[3..5])
}

/// By ksmd, told to use the zero page.
fn merged_by_ksm(map: &Map) -> Result<()> {
    KSM.write("use_zero_pages", 1)?;
    map.advise(MADV_MERGEABLE)?;
    unthrottled()?;
    scans(4)?;
    KSM.write("run", 0)?;
    one_page(&map.pfns()?[3..5])
}

/// After `change`, which leaves nothing in the file as it was, the process reads the file's page anew, and what it wrote.
fn survive(
    file: &File,
    merge: impl FnOnce(&Map) -> Result<()>,
    change: impl FnOnce(&File) -> Result<()>,
) -> Result<()> {
    let map = written(file)?;
    // Somebody maps each page as it is in the file.
    let reader = mapped(file)?;
    reader.expect_all(|page| FILE[page])?;
    merge(&map)?;
    expect_written(&map).context("merged")?;
    change(file)?;
    reader.expect_all(|page| ANEW[page])?;
    map.expect(0, ANEW[0]).context("the file's own page")?;
    expect_written(&map).context("after the file has changed")
}

fn page_of(id: u64) -> Vec<u8> {
    let words = (0..PAGE / 8).flat_map(|word| content(id, word).to_ne_bytes());
    words.collect()
}

/// Holes everywhere, and other contents in them.
fn punched(file: &File) -> Result<()> {
    punch(file, FILE.len())?;
    write_anew(file)
}

pub fn punch(file: &File, pages: usize) -> Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers only.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, (pages * PAGE) as i64) })
        .context("cannot punch holes")
        .map(drop)
}

fn write_anew(file: &File) -> Result<()> {
    for (page, id) in ANEW.into_iter().enumerate() {
        file.write_all_at(&page_of(id), (page * PAGE) as u64)?;
    }
    Ok(())
}

/// The same from a buffer that O_DIRECT takes.
fn write_directly(device: &File) -> Result<()> {
    let buffer = Map::filled(&ANEW)?;
    // SAFETY: all of a mapping, which nothing else uses.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.addr() as *const u8, buffer.len()) };
    device.write_all_at(bytes, 0).context("a direct write")
}

/// Two mappings of a file, zeros in both and in anonymous memory: those of the files share a page, which is not the zero page.
fn zeros_are_content() -> Result<()> {
    let zero = SKSM.number("pages_zero")?;
    let (one, other) = (
        written(&with_contents(&FILE)?)?,
        written(&with_contents(&FILE)?)?,
    );
    let anonymous = Map::filled(&[0, 0])?;
    for map in [&one, &other, &anonymous] {
        map.merge()?;
    }
    let (ours, theirs) = (one.pfns()?, other.pfns()?);
    one_page(&[ours[1], ours[2], ours[5], theirs[1], theirs[2], theirs[5]])?;
    let flags = Flags::of(ours[1])?;
    ensure!(flags.ksm() && !flags.zero_page(), "{flags:x?}");
    ensure!(Flags::of(anonymous.pfn(0)?)?.zero_page(), "anonymous zeros");
    let zeros = SKSM.number("pages_zero")? - zero;
    ensure!(zeros == 2, "{zeros} zero pages, of two in anonymous memory");
    one.put(1, 9, 1);
    apart(&[one.pfn(1)?, one.pfn(2)?])?;
    other.expect(1, 0)?;
    expect_written(&other)
}

/// Merged by its parent, forked, and the file changed by the parent.
fn of_a_child() -> Result<()> {
    let file = with_contents(&FILE)?;
    let map = written(&file)?;
    merged(&map)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.expect(0, ANEW[0])?;
        expect_written(&map)
    })?;
    child.pause()?;
    punched(&file)?;
    child.go()?;
    child.join()?;
    expect_written(&map)
}

fn direct_write() -> Result<()> {
    let disk = Disk::open(&FILE)?;
    survive(&disk, merged, write_directly)
}

/// The device is told that nothing in it is needed.
fn discard() -> Result<()> {
    let disk = Disk::open(&FILE)?;
    survive(&disk, merged, |device| {
        const BLKDISCARD: u64 = 0x1277;
        let range = [0, (FILE.len() * PAGE) as u64];
        // SAFETY: two numbers, as the kernel reads them.
        check(unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) })
            .context("BLKDISCARD")?;
        write_directly(device)
    })
}

/// A file whose server, elsewhere, tells that it has changed.
fn cache_invalidation() -> Result<()> {
    const BYTE: u8 = 0x46;
    let served = OneFile::mounted(FILE.len(), BYTE)?;
    let file = served.open()?;
    let map = written(&file)?;
    let theirs = u64::from_ne_bytes([BYTE; 8]);
    ensure!(map.get(0, 7) == theirs, "the file does not read as it is");
    merged(&map)?;
    for round in 0..3 {
        served.invalidate()?;
        expect_written(&map).with_context(|| format!("invalidated, round {round}"))?;
        ensure!(map.get(0, 7) == theirs, "the file's own page");
    }
    Ok(())
}

/// The file's pages become a huge one, which replaces page tables wherever nothing in them is a process's own. So do those of
/// file systems that are only read (CONFIG_READ_ONLY_THP_FOR_FS).
fn collapse() -> Result<()> {
    const PAGES: usize = TABLE / PAGE;
    let aligned = |prot, flags, file: &File| -> Result<Map> {
        let room = ManuallyDrop::new(Map::aligned(PAGES, TABLE, 0)?);
        Ok(Map::at(
            room.addr(),
            PAGES,
            prot,
            flags | MAP_FIXED,
            Some(file),
            0,
        )?)
    };
    if !std::fs::exists("/sys/kernel/mm/transparent_hugepage")? {
        skip("no huge pages in this kernel (CONFIG_TRANSPARENT_HUGEPAGE)")?;
    }
    let of_file = |page: usize| 1000 + page as u64;
    let file = with_contents(&(0..PAGES).map(of_file).collect::<Vec<_>>())?;
    let reader = aligned(READ, MAP_SHARED, &file)?;
    let map = aligned(WRITE, MAP_PRIVATE, &file)?;
    let own = |page: usize| match page % 4 {
        0 => of_file(page),
        1 => 0,
        _ => 7,
    };
    for page in (0..PAGES).filter(|page| page % 4 != 0) {
        map.fill(page, own(page));
    }
    map.expect_all(own)?;
    reader.expect_all(of_file)?;
    map.merge()?;
    let merged = map.pfns()?;
    one_page(&[merged[2], merged[3], merged[6]])?;
    for (what, collapsed) in [("the file", &reader), ("the private mapping", &map)] {
        // It is refused where the process has pages of its own.
        collapsed.advise(libc::MADV_COLLAPSE).ok();
        map.expect_all(own).with_context(|| what.to_owned())?;
        reader.expect_all(of_file)?;
    }
    let flags = Flags::of(reader.pfn(9)?)?;
    ensure!(flags.huge(), "the file's page is not huge: {flags:x?}");
    let now = map.pfns()?;
    let kept = (0..PAGES)
        .filter(|page| page % 4 != 0)
        .all(|page| now[page] == merged[page]);
    ensure!(kept, "merged pages were exchanged");
    punch(&file, PAGES)?;
    map.expect_all(|page| if page % 4 == 0 { 0 } else { own(page) })
}

/// Beyond its new end nothing is left, of zeros as of everything else; what is mapped again is the file's.
fn truncation() -> Result<()> {
    let file = with_contents(&FILE)?;
    let map = written(&file)?;
    merged(&map)?;
    let (own, all) = (zero_pages_here()?, SKSM.number("pages_zero")?);
    file.set_len(2 * PAGE as u64)?;
    map.expect(1, WRITTEN[0])?;
    for page in 2..FILE.len() {
        let ended = Child::spawn(|_| map.expect(page, WRITTEN[page - 1]))?.ended()?;
        ensure!(
            ended == Ended::Signal(libc::SIGBUS),
            "page {page} beyond the end of the file: {ended}"
        );
    }
    ensure!(
        zero_pages_here()? <= own && SKSM.number("pages_zero")? <= all,
        "zero pages that have gone are counted"
    );
    write_anew(&file)?;
    for (page, id) in ANEW.into_iter().enumerate() {
        map.expect(page, if page == 1 { WRITTEN[0] } else { id })?;
    }
    Ok(())
}
