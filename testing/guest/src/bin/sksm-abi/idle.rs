//! Idle page tracking of merged pages: an access by whoever maps the page is seen, and nothing else.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::{Child, Link, exit_now, fork, wait};
use sksm_guest::skip::skip;

use crate::expect::{merged, merging, one_page};
use crate::moving::compact;
use crate::writers::{beside, count, for_a_while};

pub const TESTS: &[Test] = &[
    test("idle/accesses-of-every-sharer-are-seen", accesses),
    test("idle/all-marked-while-merging", all_marked),
];

/// A bit for each frame: setting it forgets accesses until now; it reads as set until there is one.
struct Bitmap(File);

const FRAMES: u64 = u64::BITS as u64;

impl Bitmap {
    fn open() -> Result<Self> {
        const BITMAP: &str = "/sys/kernel/mm/page_idle/bitmap";
        if !fs::exists(BITMAP)? {
            return skip("no idle page tracking in this kernel (CONFIG_IDLE_PAGE_TRACKING)");
        }
        let file = OpenOptions::new().read(true).write(true).open(BITMAP);
        Ok(Self(file.context(BITMAP)?))
    }

    fn mark(&self, pfn: u64) -> Result<()> {
        let word = 1u64 << (pfn % FRAMES);
        (self.0)
            .write_all_at(&word.to_ne_bytes(), pfn / FRAMES * 8)
            .context("cannot mark a page")
    }

    fn is_idle(&self, pfn: u64) -> Result<bool> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, pfn / FRAMES * 8)?;
        Ok(u64::from_ne_bytes(word) >> (pfn % FRAMES) & 1 == 1)
    }

    /// Marks whatever it can.
    fn mark_all(&self) -> Result<()> {
        const AT_ONCE: usize = 4096;
        let mut at = 0;
        loop {
            match self.0.write_at(&[0xff; AT_ONCE], at) {
                Ok(0) => return Ok(()),
                Ok(written) => at += written as u64,
                // Beyond the last frame.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
                Err(error) => return Err(error).context("cannot mark all pages"),
            }
        }
    }
}

/// Makes this process's next access go through its page table: marking forgets accesses there, and not in the TLB.
pub fn forget_translations() -> Result<()> {
    // So many that the kernel drops all and does not count.
    let map = Map::anon(64)?;
    map.no_huge();
    (0..map.pages()).for_each(|page| map.put(page, 0, 1));
    drop(map);
    // arm64 drops those of a range alone, however many they are; all of a process at a fork.
    if cfg!(target_arch = "aarch64") {
        match fork()? {
            0 => exit_now(0),
            child => drop(wait(child)?),
        }
    }
    Ok(())
}

/// Reads the pages that it is told to, one after the other.
fn reader(map: &Map, parent: &Link) -> Result<()> {
    parent.go()?;
    loop {
        let page = parent.receive()? as usize;
        if page == map.pages() {
            return Ok(());
        }
        forget_translations()?;
        map.expect(page, 5)?;
        parent.go()?;
    }
}

/// Whether the processor tells of an access to a page that is present.
fn needs_accessed_bits(bitmap: &Bitmap) -> Result<()> {
    let map = Map::filled(&[5])?;
    // A new page may not be on an LRU list yet, and then it cannot be marked.
    compact()?;
    let pfn = map.pfn(0)?;
    bitmap.mark(pfn)?;
    if !bitmap.is_idle(pfn)? {
        return skip("an ordinary page cannot be marked either");
    }
    forget_translations()?;
    map.expect(0, 5)?;
    if bitmap.is_idle(pfn)? {
        return skip("an access to an ordinary page is not seen either");
    }
    Ok(())
}

fn accesses() -> Result<()> {
    let bitmap = Bitmap::open()?;
    needs_accessed_bits(&bitmap)?;
    let map = merged(2, 5)?;
    // By fork, and by a merge of its own.
    let forked = Child::spawn(|parent| reader(&map, parent))?;
    let unrelated = Child::spawn(|parent| {
        map.fill_all(|_| 5);
        map.merge()?;
        reader(&map, parent)
    })?;
    let sharers = [forked, unrelated];
    sharers.iter().try_for_each(|child| child.pause())?;
    let pfn = map.pfn(0)?;
    for child in &sharers {
        one_page(&[child.pagemap()?.pfns(map.addr(), 2)?, vec![pfn]].concat())?;
    }
    for _ in 0..3 {
        for (number, child) in sharers.iter().enumerate() {
            for page in 0..map.pages() {
                bitmap.mark(pfn)?;
                ensure!(bitmap.is_idle(pfn)?, "accessed by nobody, and not idle");
                child.send(page as u64)?;
                child.pause()?;
                ensure!(
                    !bitmap.is_idle(pfn)?,
                    "an access to page {page} by sharer {number} was not seen"
                );
            }
        }
    }
    sharers.into_iter().try_for_each(|child| {
        child.send(map.pages() as u64)?;
        child.join()
    })
}

/// Every frame is marked, over and over, while pages become merged ones, and stop to be.
fn all_marked() -> Result<()> {
    const PAGES: usize = 64;
    let bitmap = Bitmap::open()?;
    let map = Map::filled(&[0; PAGES])?;
    let write = |round| count(&map, 0..PAGES, round);
    let marking = |_: &_| beside(1, || bitmap.mark_all(), |_| for_a_while(write));
    merging(|| beside(1, || map.merge(), marking))?;
    map.merge()?;
    let pfn = map.pfn(0)?;
    ensure!(Flags::of(pfn)?.ksm(), "not merged");
    bitmap.mark_all()?;
    ensure!(bitmap.is_idle(pfn)?, "marked, and not idle");
    Ok(())
}
