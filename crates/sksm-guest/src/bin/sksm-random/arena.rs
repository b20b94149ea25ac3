//! A fixed range of addresses, page by page: what is mapped there, and what it must hold.

use std::fs::File;
use std::io;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE};
use sksm_guest::memory::{Map, PAGE, TABLE, WORDS, WRITE};
use sksm_guest::pagemap::Pagemap;
use sksm_guest::process::check;

use crate::shadow::{FILE_PAGES, Page};

/// A whole page table, so that there is room for a huge page, and a part of one on either side.
pub const PAGES: usize = SIDE + TABLE / PAGE + SIDE;
const SIDE: usize = 150;
/// Far below where the kernel places mappings by itself, so that nothing else gets into the holes.
const START: usize = (64 << 30) - SIDE * PAGE;

#[derive(Clone)]
pub struct Slot {
    page: Page,
    /// The page of the file behind it.
    file: Option<usize>,
    writable: bool,
    /// Slots of one mmap call; only these can be moved together.
    mapping: u64,
}

pub struct Arena {
    slots: Vec<Option<Slot>>,
    mappings: u64,
}

impl Arena {
    pub fn new() -> Result<Self> {
        // It must be free; then all of it is one hole.
        Map::at(
            START,
            PAGES,
            libc::PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
            None,
            0,
        )
        .context("the addresses of the arena are taken")?;
        Ok(Self {
            slots: vec![None; PAGES],
            mappings: 0,
        })
    }

    pub fn addr(page: usize) -> usize {
        START + page * PAGE
    }

    pub fn bytes(pages: &Range<usize>) -> (usize, usize) {
        (Self::addr(pages.start), pages.len() * PAGE)
    }

    pub fn has_hole(&self, pages: &Range<usize>) -> bool {
        self.slots[pages.clone()].iter().any(Option::is_none)
    }

    /// The mapped part at the front of the range.
    pub fn mapped(&self, pages: Range<usize>) -> Range<usize> {
        self.front(pages, |slot| slot.is_some())
    }

    /// The front part of the range with private anonymous pages.
    pub fn anonymous(&self, pages: Range<usize>) -> Range<usize> {
        self.front(pages, |slot| {
            slot.as_ref().is_some_and(|slot| slot.file.is_none())
        })
    }

    /// The front part of the range that is one mapping with one protection.
    pub fn alike(&self, pages: Range<usize>) -> Range<usize> {
        let key = |slot: &Option<Slot>| slot.as_ref().map(|slot| (slot.mapping, slot.writable));
        let first = key(&self.slots[pages.start]);
        self.front(pages, |slot| slot.is_some() && key(slot) == first)
    }

    /// The front part of the range with nothing mapped.
    pub fn hole(&self, pages: Range<usize>) -> Range<usize> {
        self.front(pages, Option::is_none)
    }

    fn front(&self, pages: Range<usize>, good: impl Fn(&Option<Slot>) -> bool) -> Range<usize> {
        let len = self.slots[pages.clone()]
            .iter()
            .take_while(|slot| good(slot))
            .count();
        pages.start..pages.start + len
    }

    /// The front part of the range that may be written.
    pub fn writable(&self, pages: Range<usize>) -> Range<usize> {
        self.front(pages, |slot| {
            slot.as_ref().is_some_and(|slot| slot.writable)
        })
    }

    pub fn map_anonymous(&mut self, pages: Range<usize>) -> Result<()> {
        self.map(pages, None)
    }

    pub fn map_file(&mut self, pages: Range<usize>, file: &File, first: usize) -> Result<()> {
        let len = pages.len().min(FILE_PAGES - first);
        self.map(pages.start..pages.start + len, Some((file, first)))
    }

    fn map(&mut self, pages: Range<usize>, file: Option<(&File, usize)>) -> Result<()> {
        let anonymous = if file.is_none() { MAP_ANONYMOUS } else { 0 };
        let map = Map::at(
            Self::addr(pages.start),
            pages.len(),
            WRITE,
            MAP_PRIVATE | MAP_FIXED | anonymous,
            file.map(|(file, _)| file),
            file.map_or(0, |(_, first)| first),
        )?;
        std::mem::forget(map);
        self.mappings += 1;
        for (index, page) in pages.enumerate() {
            let file = file.map(|(_, first)| first + index);
            self.slots[page] = Some(Slot {
                page: file.map_or(Page::of(0), Page::of_file),
                file,
                writable: true,
                mapping: self.mappings,
            });
        }
        Ok(())
    }

    pub fn unmap(&mut self, pages: Range<usize>) -> Result<()> {
        let (addr, len) = Self::bytes(&pages);
        // SAFETY: part of the arena, of which nothing is borrowed.
        check(unsafe { libc::munmap(addr as *mut _, len) }).context("munmap")?;
        self.slots[pages].fill(None);
        Ok(())
    }

    pub fn fill(&mut self, pages: Range<usize>, id: u64) {
        for page in pages {
            let slot = self.slots[page].as_mut().expect("mapped");
            slot.page = Page::of(id);
            for (word, value) in slot.page.words().into_iter().enumerate() {
                put(page, word, value);
            }
        }
    }

    /// Writes one word of the page; a page with too many such words is filled anew.
    pub fn patch(&mut self, page: usize, word: usize, value: u64, id: u64) {
        let slot = self.slots[page].as_mut().expect("mapped");
        if slot.page.patch(word, value) {
            put(page, word, value);
        } else {
            self.fill(page..page + 1, id);
        }
    }

    pub fn protect(&mut self, pages: Range<usize>, prot: i32) -> Result<()> {
        let (addr, len) = Self::bytes(&pages);
        // SAFETY: part of the arena, of which nothing is borrowed.
        check(unsafe { libc::mprotect(addr as *mut _, len, prot) }).context("mprotect")?;
        for slot in self.slots[pages].iter_mut().flatten() {
            slot.writable = prot & libc::PROT_WRITE != 0;
        }
        Ok(())
    }

    /// Advice that leaves contents alone.
    pub fn advise(&self, pages: &Range<usize>, advice: i32) -> io::Result<()> {
        let (addr, len) = Self::bytes(pages);
        // SAFETY: part of the arena, of which nothing is borrowed.
        check(unsafe { libc::madvise(addr as *mut _, len, advice) }).map(drop)
    }

    /// Pages show what is behind them again: the file, or zeros.
    pub fn drop_pages(&mut self, pages: Range<usize>) -> Result<()> {
        self.advise(&pages, libc::MADV_DONTNEED)
            .context("MADV_DONTNEED")?;
        for slot in self.slots[pages].iter_mut().flatten() {
            slot.page = slot.file.map_or(Page::of(0), Page::of_file);
        }
        Ok(())
    }

    /// Frees anonymous pages and at once writes them, after which nothing may be lost.
    pub fn free_and_fill(&mut self, pages: Range<usize>, id: u64) -> Result<()> {
        self.advise(&pages, libc::MADV_FREE).context("MADV_FREE")?;
        self.fill(pages, id);
        Ok(())
    }

    pub fn lock(&self, pages: &Range<usize>, on: bool) -> io::Result<()> {
        let (addr, len) = Self::bytes(pages);
        let call = if on { libc::mlock } else { libc::munlock };
        // SAFETY: changes no content.
        check(unsafe { call(addr as *const _, len) }).map(drop)
    }

    /// Moves pages of one mapping into a hole. The kernel may find that they have become several mappings and refuse.
    pub fn relocate(&mut self, pages: Range<usize>, to: usize) -> Result<()> {
        let (addr, len) = Self::bytes(&pages);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let target = Self::addr(to) as *mut libc::c_void;
        // SAFETY: from one part of the arena to a hole of it, and nothing is borrowed.
        let moved = unsafe { libc::mremap(addr as *mut _, len, len, flags, target) };
        if moved == target {
            for (index, page) in pages.enumerate() {
                self.slots[to + index] = self.slots[page].take();
            }
            return Ok(());
        }
        let error = io::Error::last_os_error();
        ensure!(
            error.raw_os_error() == Some(libc::EFAULT),
            "mremap: {error}"
        );
        Ok(())
    }

    /// Compares every mapped page with what it must hold; tells how many.
    pub fn compare(&self) -> Result<u64> {
        let mut compared = 0;
        for (page, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            compared += 1;
            let right = slot.page.words();
            let found: [u64; WORDS] = std::array::from_fn(|word| get(page, word));
            if let Some(word) = (0..WORDS).find(|word| found[*word] != right[*word]) {
                let wrong = (0..WORDS)
                    .filter(|word| found[*word] != right[*word])
                    .count();
                bail!(
                    "process {}, address {:#x} (page {page}, {}): expected {:#x}, got {:#x}; {wrong} of {WORDS} words wrong; {:x?}; now it reads {:#x}",
                    std::process::id(),
                    Self::addr(page) + word * 8,
                    if slot.file.is_some() {
                        "private file page"
                    } else {
                        "anonymous"
                    },
                    right[word],
                    found[word],
                    Pagemap::own()?.entry(Self::addr(page))?,
                    get(page, word),
                );
            }
        }
        Ok(compared)
    }
}

fn place(page: usize, word: usize) -> *mut u64 {
    assert!(page < PAGES && word < WORDS);
    (Arena::addr(page) + word * 8) as *mut u64
}

fn put(page: usize, word: usize, value: u64) {
    // SAFETY: in the arena; were it not mapped writable, the process would die as it should.
    unsafe { place(page, word).write_volatile(value) }
}

fn get(page: usize, word: usize) -> u64 {
    // SAFETY: in the arena; were it not mapped, the process would die as it should.
    unsafe { place(page, word).read_volatile() }
}
