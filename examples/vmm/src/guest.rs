//! A guest, as far as its memory shows it.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Result;

pub const PAGE: usize = 4096;
/// 16 MiB.
pub const PAGES: usize = 4096;
/// Guests write to pages from here on, or to none.
const WRITTEN_FROM: usize = PAGES * 3 / 4;

/// How fast a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Idle,
    Slow,
    Busy,
}

impl Rate {
    pub const ALL: [Rate; 3] = [Rate::Idle, Rate::Slow, Rate::Busy];

    pub fn name(self) -> &'static str {
        match self {
            Rate::Idle => "idle",
            Rate::Slow => "slow",
            Rate::Busy => "busy",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Rate::ALL.into_iter().find(|rate| rate.name() == name)
    }

    /// How many pages it writes each tenth of a second.
    pub fn pages(self) -> usize {
        match self {
            Rate::Idle => 0,
            Rate::Slow => 4,
            Rate::Busy => PAGES - WRITTEN_FROM,
        }
    }

    /// How much of its memory nobody writes to: pages of the image, and of zeros. Where a twin is asked for, the image counts only
    /// as far as others leave it alone as well.
    pub fn at_rest(self, with_twins: bool) -> [u64; 2] {
        let own = match self {
            Rate::Idle => PAGES,
            Rate::Slow | Rate::Busy => WRITTEN_FROM,
        };
        let image = if with_twins { WRITTEN_FROM } else { own };
        [image as u64 / 2, own as u64 / 4]
    }
}

/// The memory, and how often each of its pages was written since it booted.
pub struct Guest {
    pub memory: GuestMemoryMmap,
    versions: Vec<u64>,
    next: usize,
}

impl Guest {
    pub fn boot() -> Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PAGES * PAGE)])?;
        let mut guest = Guest {
            memory,
            versions: vec![0; PAGES],
            next: WRITTEN_FROM,
        };
        (0..PAGES).try_for_each(|page| guest.store(page))?;
        Ok(guest)
    }

    /// Writes so many pages, one after the other.
    pub fn write(&mut self, pages: usize) -> Result<()> {
        for _ in 0..pages {
            self.versions[self.next] += 1;
            self.store(self.next)?;
            self.next += 1;
            if self.next == PAGES {
                self.next = WRITTEN_FROM;
            }
        }
        Ok(())
    }

    fn store(&mut self, page: usize) -> Result<()> {
        let content = self.content(page);
        self.memory.write_slice(&content, address(page))?;
        Ok(())
    }

    /// Whether all of it is as it was written.
    pub fn check(&self) -> Result<()> {
        let mut found = [0; PAGE];
        for page in 0..PAGES {
            self.memory.read_slice(&mut found, address(page))?;
            if found != self.content(page) {
                return Err(format!("page {page} of the guest has changed").into());
            }
        }
        Ok(())
    }

    /// Of four pages two are of the image, one is the guest's own, one is zeros; what it has written is its own.
    fn content(&self, page: usize) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        let own = u64::from(std::process::id()) << 32;
        let version = self.versions[page];
        let start = match page % 4 {
            _ if version > 0 => page as u64 | own | version << 52,
            0 | 1 => page as u64,
            2 => page as u64 | own,
            _ => return bytes,
        };
        for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(start + ((at as u64) << 20)).to_le_bytes());
        }
        bytes
    }
}

fn address(page: usize) -> GuestAddress {
    GuestAddress((page * PAGE) as u64)
}
