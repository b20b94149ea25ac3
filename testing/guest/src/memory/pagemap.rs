//! Which physical page stands behind an address: `/proc/PID/pagemap`, `/proc/kpageflags`, `/proc/kpagecount`.
//! Needs root: others read zeros for page frame numbers.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use crate::page::PAGE;

/// What the page table says about one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    pub fn present(self) -> bool {
        self.0 >> 63 & 1 != 0
    }
    pub fn swapped(self) -> bool {
        self.0 >> 62 & 1 != 0
    }
    /// The page belongs to a file or to shared memory, not to this mapping alone.
    pub fn file_or_shared(self) -> bool {
        self.0 >> 61 & 1 != 0
    }
    /// Written, or new, since somebody last wrote to `/proc/PID/clear_refs`.
    pub fn soft_dirty(self) -> bool {
        self.0 >> 55 & 1 != 0
    }
    /// Nothing else maps the page.
    pub fn exclusive(self) -> bool {
        self.0 >> 56 & 1 != 0
    }
    /// Write-protected by userfaultfd.
    pub fn uffd_wp(self) -> bool {
        self.0 >> 57 & 1 != 0
    }
    /// The page frame number, if a page is present.
    pub fn pfn(self) -> Option<u64> {
        self.present().then_some(self.0 & ((1 << 55) - 1))
    }
}

/// The page table of one process.
pub struct Pagemap(File);

impl Pagemap {
    pub fn own() -> Result<Self> {
        Self::open("/proc/self/pagemap".into())
    }

    pub fn of(pid: i32) -> Result<Self> {
        Self::open(format!("/proc/{pid}/pagemap"))
    }

    fn open(path: String) -> Result<Self> {
        Ok(Self(
            File::open(&path).with_context(|| format!("cannot open {path}"))?,
        ))
    }

    /// The entries of `pages` pages from `addr`.
    pub fn entries(&self, addr: usize, pages: usize) -> Result<Vec<Entry>> {
        let words = words(&self.0, (addr / PAGE) as u64, pages).context("pagemap")?;
        Ok(words.into_iter().map(Entry).collect())
    }

    pub fn entry(&self, addr: usize) -> Result<Entry> {
        Ok(self.entries(addr, 1)?[0])
    }

    /// How many of `pages` pages from `addr` are in swap space.
    pub fn swapped(&self, addr: usize, pages: usize) -> Result<usize> {
        let entries = self.entries(addr, pages)?;
        Ok(entries.iter().filter(|entry| entry.swapped()).count())
    }

    /// The page frame number behind `addr`; an error if no page is present there.
    pub fn pfn(&self, addr: usize) -> Result<u64> {
        Ok(self.pfns(addr, 1)?[0])
    }

    /// The page frame numbers of `pages` pages from `addr`, all of which must be present.
    pub fn pfns(&self, addr: usize, pages: usize) -> Result<Vec<u64>> {
        let mut pfns = Vec::with_capacity(pages);
        for (index, entry) in self.entries(addr, pages)?.into_iter().enumerate() {
            match entry.pfn() {
                Some(0) => bail!("pagemap hides page frame numbers: run as root"),
                Some(pfn) => pfns.push(pfn),
                None => bail!("no page present at {:#x}", addr + index * PAGE),
            }
        }
        Ok(pfns)
    }
}

/// Flags of a physical page, as in the kernel's `kernel-page-flags.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u64);

impl Flags {
    pub fn of(pfn: u64) -> Result<Self> {
        Ok(Self::range(pfn, 1)?[0])
    }
    /// Those of `count` pages from `first`.
    pub fn range(first: u64, count: usize) -> Result<Vec<Self>> {
        let file = File::open("/proc/kpageflags").context("cannot open /proc/kpageflags")?;
        let words = words(&file, first, count).context("kpageflags")?;
        Ok(words.into_iter().map(Self).collect())
    }
    /// The kernel keeps it for ever.
    pub fn reserved(self) -> bool {
        self.0 >> 32 & 1 != 0
    }
    /// The page has failed, or was taken out of use before it could.
    pub fn poisoned(self) -> bool {
        self.0 >> 19 & 1 != 0
    }
    /// On a list that reclaim looks through.
    pub fn lru(self) -> bool {
        self.0 >> 5 & 1 != 0
    }
    pub fn anon(self) -> bool {
        self.0 >> 12 & 1 != 0
    }
    pub fn ksm(self) -> bool {
        self.0 >> 21 & 1 != 0
    }
    pub fn huge(self) -> bool {
        self.0 >> 22 & 1 != 0
    }
    /// It is in the swap cache.
    pub fn swap_cache(self) -> bool {
        self.0 >> 13 & 1 != 0
    }
    pub fn zero_page(self) -> bool {
        self.0 >> 24 & 1 != 0
    }
}

/// How many different physical pages these are.
pub fn copies(pfns: &[u64]) -> usize {
    pfns.iter().collect::<HashSet<_>>().len()
}

/// How many page table entries map this physical page.
pub fn map_count(pfn: u64) -> Result<u64> {
    let file = File::open("/proc/kpagecount").context("cannot open /proc/kpagecount")?;
    Ok(words(&file, pfn, 1).context("kpagecount")?[0])
}

/// Reads `count` 64-bit words from word `first` of one of proc's arrays of words.
fn words(file: &File, first: u64, count: usize) -> Result<Vec<u64>> {
    let mut bytes = vec![0; count * 8];
    let mut done = 0;
    while done < bytes.len() {
        let read = file.read_at(&mut bytes[done..], first * 8 + done as u64)?;
        ensure!(read > 0, "ends before word {}", first + done as u64 / 8);
        done += read;
    }
    let words = bytes.chunks_exact(8);
    Ok(words
        .map(|word| u64::from_ne_bytes(word.try_into().expect("chunks of eight")))
        .collect())
}
