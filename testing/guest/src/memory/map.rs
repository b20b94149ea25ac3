//! Mappings filled with known content.

use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::{io, ptr};

use anyhow::{Context, Result, ensure};

use crate::memory::content::content;
use crate::memory::pagemap::{Flags, Pagemap};
use crate::page::{PAGE, TABLE, WORDS};
use crate::syscall::check;

pub const READ: i32 = libc::PROT_READ;
pub const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub const EXECUTE: i32 = libc::PROT_READ | libc::PROT_EXEC;

/// A mapping; unmapped when dropped.
#[derive(Debug)]
pub struct Map {
    addr: usize,
    pages: usize,
}

impl Map {
    pub fn new(pages: usize, prot: i32, flags: i32, file: Option<&File>) -> io::Result<Self> {
        Self::at(0, pages, prot, flags, file, 0)
    }

    /// The whole of mmap; `addr` is a hint unless the flags say otherwise.
    pub fn at(
        addr: usize,
        pages: usize,
        prot: i32,
        flags: i32,
        file: Option<&File>,
        first_page: usize,
    ) -> io::Result<Self> {
        let fd = file.map_or(-1, File::as_raw_fd);
        let offset = (first_page * PAGE) as i64;
        // SAFETY: the kernel chooses a free place, or the caller names a part of a mapping that it owns.
        let addr = unsafe { libc::mmap(addr as *mut _, pages * PAGE, prot, flags, fd, offset) };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            addr: addr as usize,
            pages,
        })
    }

    /// Private anonymous memory.
    pub fn anon(pages: usize) -> Result<Self> {
        Self::new(pages, WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None).context("mmap")
    }

    /// Private anonymous memory at a multiple of `align` bytes plus `offset`, without huge pages.
    pub fn aligned(pages: usize, align: usize, offset: usize) -> Result<Self> {
        let room = Self::anon(pages + 2 * align / PAGE)?;
        let start = room.addr.next_multiple_of(align) + offset;
        let (before, after) = (start - room.addr, start + pages * PAGE);
        unmap(room.addr, before)?;
        unmap(after, room.addr + room.len() - after)?;
        std::mem::forget(room);
        let map = Self { addr: start, pages };
        map.no_huge();
        Ok(map)
    }

    /// Private anonymous memory in huge pages, with these contents; none in a kernel without huge pages.
    pub fn huge(pages: usize, id: impl Fn(usize) -> u64) -> Result<Option<Self>> {
        const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
        if !fs::exists(ENABLED)? {
            return Ok(None);
        }
        fs::write(ENABLED, "madvise").context("cannot enable huge pages")?;
        let map = Self::aligned(pages, TABLE, 0)?;
        map.advise(libc::MADV_HUGEPAGE).context("MADV_HUGEPAGE")?;
        map.fill_all(id);
        for page in (0..pages).step_by(TABLE / PAGE) {
            let flags = Flags::of(map.pfn(page)?)?;
            ensure!(flags.huge(), "no huge page to be had: {flags:x?}");
        }
        Ok(Some(map))
    }

    /// Private anonymous pages with these contents.
    pub fn filled(contents: &[u64]) -> Result<Self> {
        let map = Self::anon(contents.len())?;
        map.no_huge();
        for (page, id) in contents.iter().enumerate() {
            map.fill(page, *id);
        }
        Ok(map)
    }

    /// Keeps huge pages out, so that a test says itself when it wants them.
    pub fn no_huge(&self) {
        // A kernel without huge pages refuses, and is right.
        self.advise(libc::MADV_NOHUGEPAGE).ok();
    }

    /// A part of it, which must not be dropped: it does not own its pages.
    pub fn part(&self, pages: Range<usize>) -> ManuallyDrop<Self> {
        ManuallyDrop::new(Self {
            addr: self.page(pages.start),
            pages: pages.len(),
        })
    }

    pub fn addr(&self) -> usize {
        self.addr
    }

    pub fn page(&self, page: usize) -> usize {
        assert!(page <= self.pages);
        self.addr + page * PAGE
    }

    pub fn pages(&self) -> usize {
        self.pages
    }

    pub fn len(&self) -> usize {
        self.pages * PAGE
    }

    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    fn word(&self, page: usize, word: usize) -> *mut u64 {
        assert!(page < self.pages && word < WORDS);
        (self.addr + page * PAGE + word * 8) as *mut u64
    }

    pub fn put(&self, page: usize, word: usize, value: u64) {
        // SAFETY: inside the mapping; if it is not writable the process dies, as a test would.
        unsafe { self.word(page, word).write_volatile(value) }
    }

    pub fn get(&self, page: usize, word: usize) -> u64 {
        // SAFETY: inside the mapping; if it is not readable the process dies, as a test would.
        unsafe { self.word(page, word).read_volatile() }
    }

    pub fn fill(&self, page: usize, id: u64) {
        for word in 0..WORDS {
            self.put(page, word, content(id, word));
        }
    }

    pub fn fill_all(&self, id: impl Fn(usize) -> u64) {
        for page in 0..self.pages {
            self.fill(page, id(page));
        }
    }

    /// The page must hold exactly this content.
    pub fn expect(&self, page: usize, id: u64) -> Result<()> {
        self.expect_after(page, 0, id)
    }

    /// The page must hold exactly this content from the given word on.
    pub fn expect_after(&self, page: usize, first: usize, id: u64) -> Result<()> {
        for word in first..WORDS {
            let (found, right) = (self.get(page, word), content(id, word));
            ensure!(
                found == right,
                "page {page} at {:#x} holds {found:#x} instead of {right:#x} (content {id}, word {word})",
                self.page(page)
            );
        }
        Ok(())
    }

    pub fn expect_all(&self, id: impl Fn(usize) -> u64) -> Result<()> {
        (0..self.pages).try_for_each(|page| self.expect(page, id(page)))
    }

    pub fn bytes(&self) -> Vec<u8> {
        (0..self.pages * WORDS)
            .flat_map(|word| self.get(word / WORDS, word % WORDS).to_ne_bytes())
            .collect()
    }

    /// Merges all of it.
    pub fn merge(&self) -> Result<()> {
        self.merge_pages(0..self.pages)
    }

    pub fn merge_pages(&self, pages: Range<usize>) -> Result<()> {
        merge(self.page(pages.start), pages.len() * PAGE)
    }

    pub fn advise(&self, advice: i32) -> io::Result<()> {
        self.advise_pages(0..self.pages, advice)
    }

    pub fn advise_pages(&self, pages: Range<usize>, advice: i32) -> io::Result<()> {
        // SAFETY: of this mapping; contents are accessed by volatile reads and writes only, so they may change.
        check(unsafe {
            libc::madvise(self.page(pages.start) as *mut _, pages.len() * PAGE, advice)
        })
        .map(drop)
    }

    pub fn protect(&self, prot: i32) -> io::Result<()> {
        self.protect_pages(0..self.pages, prot)
    }

    pub fn protect_pages(&self, pages: Range<usize>, prot: i32) -> io::Result<()> {
        let start = self.page(pages.start) as *mut _;
        // SAFETY: of this mapping.
        check(unsafe { libc::mprotect(start, pages.len() * PAGE, prot) }).map(drop)
    }

    /// Leaves a hole.
    pub fn unmap_pages(&self, pages: Range<usize>) -> io::Result<()> {
        unmap(self.page(pages.start), pages.len() * PAGE)
    }

    /// Moves it to another address.
    pub fn moved(self) -> Result<Self> {
        let target = Self::anon(self.pages)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both mappings are owned here; the old one is given up below.
        let addr = unsafe {
            libc::mremap(
                self.addr as *mut _,
                self.len(),
                self.len(),
                flags,
                target.addr as *mut libc::c_void,
            )
        };
        ensure!(
            addr as usize == target.addr,
            "mremap: {}",
            io::Error::last_os_error()
        );
        std::mem::forget(self);
        Ok(target)
    }

    /// The physical pages, all of which must be present.
    pub fn pfns(&self) -> Result<Vec<u64>> {
        Pagemap::own()?.pfns(self.addr, self.pages)
    }

    pub fn pfn(&self, page: usize) -> Result<u64> {
        Pagemap::own()?.pfn(self.page(page))
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        unmap(self.addr, self.len()).expect("munmap of a whole mapping");
    }
}

fn unmap(addr: usize, len: usize) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    // SAFETY: the caller owns this range.
    check(unsafe { libc::munmap(ptr::with_exposed_provenance_mut(addr), len) }).map(drop)
}

/// Merges a range, which must succeed.
pub fn merge(addr: usize, len: usize) -> Result<()> {
    sksm::merge_exact(addr, len).with_context(|| format!("merge of {} pages", len / PAGE))
}
