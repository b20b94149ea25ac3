//! A fixed range of addresses, page by page: what is mapped there, and what it must hold.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use crate::memory::map::{Map, WRITE};
use crate::memory::pagemap::Pagemap;
use crate::memory::userfault;
use crate::page::{PAGE, TABLE, WORDS};
use crate::syscall::check;
use anyhow::{Context, Result, bail, ensure};
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE};

use super::shadow::{FILE_PAGES, Page};

/// A whole page table, so that there is room for a huge page, and a part of one on either side.
pub const PAGES: usize = SIDE + TABLE / PAGE + SIDE;
/// The pages of the whole table.
pub const MIDDLE: Range<usize> = SIDE..SIDE + TABLE / PAGE;
const SIDE: usize = 150;
/// Far below where the kernel places mappings by itself, so that nothing else gets into the holes.
const START: usize = (64 << 30) - SIDE * PAGE;

/// What a page shows that was never written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Zeros,
    /// This page of the file that never changes.
    File(usize),
    /// Nobody knows: the file changes all the time.
    Changing,
}

impl Behind {
    /// What the page holds then; none if nobody knows.
    fn page(self) -> Option<Page> {
        match self {
            Self::Zeros => Some(Page::of(0)),
            Self::File(page) => Some(Page::of_file(page)),
            Self::Changing => None,
        }
    }
}

/// How many pages a comparison was of.
#[derive(Clone, Copy, Default)]
pub struct Compared {
    pub all: u64,
    /// Those of files that change.
    pub changing: u64,
}

/// What a forked child finds in place of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Inherited {
    Page,
    /// MADV_WIPEONFORK.
    Zeros,
    /// MADV_DONTFORK.
    Nothing,
}

#[derive(Clone)]
pub struct Slot {
    page: Page,
    behind: Behind,
    writable: bool,
    /// Slots of one mmap call; only these can be moved together.
    mapping: u64,
    /// Somebody else holds the page and wants to know that it was written.
    watched: Option<Rc<Cell<bool>>>,
    /// The page's place in the buffer that is registered.
    registered: Option<usize>,
    inherited: Inherited,
}

impl Slot {
    /// The page, about to be written.
    fn written(&mut self) -> &mut Page {
        if let Some(watched) = &self.watched {
            watched.set(true);
        }
        &mut self.page
    }
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

    /// The first pages of the range that are mapped.
    pub fn mapped(&self, pages: Range<usize>) -> Range<usize> {
        self.run(pages, |slot| slot.is_some())
    }

    /// The first private anonymous pages of the range.
    pub fn anonymous(&self, pages: Range<usize>) -> Range<usize> {
        self.run(pages, |slot| {
            slot.as_ref()
                .is_some_and(|slot| slot.behind == Behind::Zeros)
        })
    }

    /// The first pages of the range that are one mapping with one protection.
    pub fn alike(&self, pages: Range<usize>) -> Range<usize> {
        let pages = self.mapped(pages);
        let key = |slot: &Option<Slot>| slot.as_ref().map(|slot| (slot.mapping, slot.writable));
        let first = self.slots.get(pages.start).and_then(key);
        self.run(pages, |slot| key(slot) == first)
    }

    /// The first pages of the range with nothing mapped.
    pub fn hole(&self, pages: Range<usize>) -> Range<usize> {
        self.run(pages, Option::is_none)
    }

    /// The first run of pages like that, possibly empty.
    fn run(&self, pages: Range<usize>, good: impl Fn(&Option<Slot>) -> bool) -> Range<usize> {
        let slots = &self.slots[pages.clone()];
        let before = slots.iter().take_while(|slot| !good(slot)).count();
        let len = slots[before..].iter().take_while(|slot| good(slot)).count();
        let start = pages.start + before;
        start..start + len
    }

    /// The first pages of the range that may be written.
    pub fn writable(&self, pages: Range<usize>) -> Range<usize> {
        self.run(pages, |slot| {
            slot.as_ref().is_some_and(|slot| slot.writable)
        })
    }

    /// The first pages of the range of which it is known what they hold when they are dropped, or that can be written then.
    pub fn droppable(&self, pages: Range<usize>) -> Range<usize> {
        self.run(pages, |slot| {
            slot.as_ref()
                .is_some_and(|slot| slot.writable || slot.behind != Behind::Changing)
        })
    }

    pub fn map_anonymous(&mut self, pages: Range<usize>) -> Result<()> {
        self.map(pages, None, |_| Behind::Zeros)
    }

    pub fn map_file(&mut self, pages: Range<usize>, file: &File, first: usize) -> Result<()> {
        let len = pages.len().min(FILE_PAGES - first);
        let pages = pages.start..pages.start + len;
        self.map(pages, Some((file, first)), |index| {
            Behind::File(first + index)
        })
    }

    /// Maps pages of a file that changes, and writes all of them.
    pub fn map_changing(
        &mut self,
        pages: Range<usize>,
        file: &File,
        first: usize,
        id: u64,
    ) -> Result<()> {
        self.map(pages.clone(), Some((file, first)), |_| Behind::Changing)?;
        self.fill(pages, id);
        Ok(())
    }

    fn map(
        &mut self,
        pages: Range<usize>,
        file: Option<(&File, usize)>,
        behind: impl Fn(usize) -> Behind,
    ) -> Result<()> {
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
            let behind = behind(index);
            self.slots[page] = Some(Slot {
                page: behind.page().unwrap_or(Page::of(0)),
                behind,
                writable: true,
                mapping: self.mappings,
                watched: None,
                registered: None,
                inherited: Inherited::Page,
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

    fn slot(&mut self, page: usize) -> &mut Slot {
        self.slots[page].as_mut().expect("mapped")
    }

    pub fn fill(&mut self, pages: Range<usize>, id: u64) {
        for page in pages {
            let found = self.slot(page).written();
            *found = Page::of(id);
            for (word, value) in found.words().into_iter().enumerate() {
                put(page, word, value);
            }
        }
    }

    /// Writes one word of the page; a page with too many such words is filled anew.
    pub fn patch(&mut self, page: usize, word: usize, value: u64, id: u64) {
        if self.slot(page).written().patch(word, value) {
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

    /// Pages show what is behind them again: the file, or zeros. Where nobody knows what that is they are filled.
    pub fn drop_pages(&mut self, pages: Range<usize>, id: u64) -> Result<()> {
        self.advise(&pages, libc::MADV_DONTNEED)
            .context("MADV_DONTNEED")?;
        for page in pages {
            let Some(slot) = &mut self.slots[page] else {
                continue;
            };
            slot.watched = None;
            slot.registered = None;
            match slot.behind.page() {
                Some(behind) => slot.page = behind,
                None => self.fill(page..page + 1, id),
            }
        }
        Ok(())
    }

    /// Lets the page's frame fail, and drops the page before anybody looks at it.
    pub fn poison(&mut self, page: usize, id: u64) -> Result<bool> {
        let pages = page..page + 1;
        // Busy means that the kernel could not free it; it is marked as failed all the same.
        let failed = match self.advise(&pages, libc::MADV_HWPOISON) {
            Ok(()) => true,
            Err(error) => error.raw_os_error() == Some(libc::EBUSY),
        };
        self.drop_pages(pages, id)?;
        Ok(failed)
    }

    /// Says what a forked child will find.
    pub fn inherit(&mut self, pages: Range<usize>, inherited: Inherited) -> Result<()> {
        let advice = match inherited {
            Inherited::Page => [libc::MADV_DOFORK, libc::MADV_KEEPONFORK],
            Inherited::Zeros => [libc::MADV_DOFORK, libc::MADV_WIPEONFORK],
            Inherited::Nothing => [libc::MADV_KEEPONFORK, libc::MADV_DONTFORK],
        };
        for advice in advice {
            self.advise(&pages, advice).context("MADV_..FORK")?;
        }
        for slot in self.slots[pages].iter_mut().flatten() {
            slot.inherited = inherited;
        }
        Ok(())
    }

    /// Anonymous pages come from a handler of faults: copies of one content, or zeros. It need not have its way everywhere.
    pub fn supply(&mut self, uffd: &File, pages: Range<usize>, id: u64) -> Result<bool> {
        self.drop_pages(pages.clone(), 0)?;
        let bytes = Self::bytes(&pages);
        if userfault::register(uffd, bytes, userfault::REGISTER_MISSING).is_err() {
            return Ok(false);
        }
        let source = Map::filled(&[id])?;
        for page in pages {
            let at = Self::addr(page);
            let supplied = match id {
                0 => userfault::zero(uffd, (at, PAGE)),
                _ => userfault::copy(uffd, source.addr(), at, PAGE),
            };
            if supplied.is_ok() {
                self.slot(page).page = Page::of(id);
            }
        }
        Ok(true)
    }

    /// Moves anonymous pages, one by one, to new ones from `to` on, where they are wanted. Pages that others have stay.
    pub fn carry(&mut self, uffd: &File, pages: Range<usize>, to: usize) -> Result<bool> {
        let target = to..to + pages.len();
        self.map_anonymous(target.clone())?;
        if userfault::register(uffd, Self::bytes(&target), userfault::REGISTER_MISSING).is_err() {
            return Ok(false);
        }
        let mut any = false;
        for (from, to) in pages.zip(target) {
            if userfault::move_pages(uffd, Self::addr(from), Self::addr(to), PAGE).is_err() {
                continue;
            }
            any = true;
            let slot = self.slot(from);
            let page = std::mem::replace(&mut slot.page, Page::of(0));
            let (watched, registered) = (slot.watched.take(), slot.registered.take());
            let slot = self.slot(to);
            (slot.page, slot.watched, slot.registered) = (page, watched, registered);
        }
        Ok(any)
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

    /// Moves pages of one mapping into a hole. The kernel may find that they have become several mappings and refuse. Where
    /// they were, a hole is left, or, if all of them are anonymous and that is wanted, new pages of the same mapping.
    pub fn relocate(&mut self, pages: Range<usize>, to: usize, stay: bool) -> Result<bool> {
        let (addr, len) = Self::bytes(&pages);
        let stay = stay && self.anonymous(pages.clone()) == pages;
        let mut flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        if stay {
            flags |= libc::MREMAP_DONTUNMAP;
        }
        let target = Self::addr(to) as *mut libc::c_void;
        // SAFETY: from one part of the arena to a hole of it, and nothing is borrowed.
        let moved = unsafe { libc::mremap(addr as *mut _, len, len, flags, target) };
        if moved == target {
            for (index, page) in pages.enumerate() {
                let left = self.slots[page].clone().filter(|_| stay).map(|slot| Slot {
                    page: Page::of(0),
                    watched: None,
                    registered: None,
                    ..slot
                });
                self.slots[to + index] = std::mem::replace(&mut self.slots[page], left);
            }
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        ensure!(
            error.raw_os_error() == Some(libc::EFAULT),
            "mremap: {error}"
        );
        Ok(false)
    }

    /// Writes one word as a debugger does, whatever the protection; false if that would be one too many.
    pub fn poke(&mut self, page: usize, word: usize, value: u64) -> Result<bool> {
        // The file stands for the memory of the process that opened it.
        let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
        let patched = self.slot(page).written().patch(word, value);
        if patched {
            let at = (Self::addr(page) + word * 8) as u64;
            memory.write_all_at(&value.to_ne_bytes(), at)?;
        }
        Ok(patched)
    }

    /// Lets the device write its pages from `from` on, which are the file's, into pages.
    pub fn read_from(&mut self, disk: &File, pages: Range<usize>, from: usize) -> Result<()> {
        let (addr, len) = Self::bytes(&pages);
        let (fd, at) = (disk.as_raw_fd(), (from * PAGE) as i64);
        // SAFETY: writable pages of the arena, of which nothing is borrowed.
        let read = check(unsafe { libc::pread(fd, addr as *mut _, len, at) })?;
        ensure!(read as usize == len, "{read} of {len} bytes were read");
        for (index, page) in pages.enumerate() {
            *self.slot(page).written() = Page::of_file(from + index);
        }
        Ok(())
    }

    /// Lets the device read pages, to its page `at` and following, and compares what arrived.
    pub fn write_to(&self, disk: &File, pages: Range<usize>, at: usize) -> Result<()> {
        let (addr, len) = Self::bytes(&pages);
        let offset = (at * PAGE) as i64;
        // SAFETY: mapped pages of the arena.
        let written =
            check(unsafe { libc::pwrite(disk.as_raw_fd(), addr as *const _, len, offset) })?;
        ensure!(
            written as usize == len,
            "{written} of {len} bytes were written"
        );
        let back = Map::anon(pages.len())?;
        // SAFETY: all of the mapping just made.
        let read =
            check(unsafe { libc::pread(disk.as_raw_fd(), back.addr() as *mut _, len, offset) })?;
        ensure!(read as usize == len, "{read} of {len} bytes were read back");
        for (index, page) in pages.enumerate() {
            let right = self.slots[page].as_ref().expect("mapped").page.words();
            for (word, right) in right.into_iter().enumerate() {
                let found = back.get(index, word);
                ensure!(
                    found == right,
                    "page {page}, word {word}, on the disk: expected {right:#x}, got {found:#x}"
                );
            }
        }
        Ok(())
    }

    /// What the page holds, and a mark that is set when it is written from now on.
    pub fn watch(&mut self, page: usize) -> ([u64; WORDS], Rc<Cell<bool>>) {
        let slot = self.slot(page);
        let watched = slot.watched.get_or_insert_default();
        // Whoever watches already has to see writes until now only.
        if watched.get() {
            *watched = Rc::default();
        }
        (slot.page.words(), slot.watched.clone().expect("just set"))
    }

    /// These pages, wherever they move, are the registered buffer now.
    pub fn register(&mut self, pages: Range<usize>) {
        for slot in self.slots.iter_mut().flatten() {
            slot.registered = None;
        }
        for (index, page) in pages.enumerate() {
            self.slot(page).registered = Some(index);
        }
    }

    /// The device has written its pages from `from` on into the registered buffer.
    pub fn registered_read(&mut self, from: usize) {
        for slot in self.slots.iter_mut().flatten() {
            if let Some(index) = slot.registered {
                *slot.written() = Page::of_file(from + index);
            }
        }
    }

    /// In a forked child: it has what it was to inherit, and whoever holds pages holds the parent's.
    pub fn forked(&mut self) {
        for place in &mut self.slots {
            let Some(slot) = place else { continue };
            slot.watched = None;
            slot.registered = None;
            match slot.inherited {
                Inherited::Page => {}
                Inherited::Zeros => slot.page = Page::of(0),
                Inherited::Nothing => *place = None,
            }
        }
    }

    pub fn is_zero(&self, page: usize) -> bool {
        let zero = Page::of(0).words();
        (self.slots[page].as_ref()).is_some_and(|slot| slot.page.words() == zero)
    }

    /// Whether all of the range is one mapping.
    pub fn is_one_mapping(&self, pages: &Range<usize>) -> bool {
        self.alike(pages.clone()).len() == pages.len()
    }

    /// Changes a byte that the shadow does not know of.
    pub fn plant(&self) {
        let writable = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.writable);
        if let Some(page) = self.slots.iter().position(writable) {
            put(page, 7, get(page, 7) ^ 0x100);
        }
    }

    /// Compares every mapped page with what it must hold; tells how many.
    pub fn compare(&self) -> Result<Compared> {
        let mut compared = Compared::default();
        for (page, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            compared.all += 1;
            compared.changing += u64::from(slot.behind == Behind::Changing);
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
                    match slot.behind {
                        Behind::Zeros => "anonymous",
                        Behind::File(_) => "private file page",
                        Behind::Changing => "private page of a changing file",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_behind_the_shadows_back_is_found() {
        let mut arena = Arena::new().unwrap();
        arena.map_anonymous(3..6).unwrap();
        arena.fill(4..6, 5);
        arena.patch(5, 1, 2, 0);
        assert_eq!(arena.compare().unwrap().all, 3);
        for (page, word, bit) in [(3, 0, 1), (4, WORDS - 1, 1 << 63), (5, 1, 4)] {
            let right = get(page, word);
            put(page, word, right ^ bit);
            let found = arena.compare().err().unwrap().to_string();
            let place = format!(
                "(page {page}, anonymous): expected {right:#x}, got {:#x}; 1 of",
                right ^ bit
            );
            assert!(found.contains(&place), "{found}");
            put(page, word, right);
        }
        assert_eq!(arena.compare().unwrap().all, 3);
    }
}
