//! What all processes of the test share: totals, the time to stop, and the first difference.

use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst,
};
use std::time::Instant;

use crate::memory::map::{Map, WRITE};
use crate::page::PAGE;
use anyhow::Result;
use libc::{MAP_ANONYMOUS, MAP_SHARED};

use super::arena::Compared;
use super::operation::{self, Operation};

const TEXT: usize = 4 * PAGE;
/// Parts of the disk that a process may write to, and their size.
pub const AREAS: usize = 32;
pub const AREA_PAGES: usize = 16;

#[repr(C)]
struct Block {
    operations: AtomicU64,
    merges: AtomicU64,
    forks: AtomicU64,
    compared: AtomicU64,
    /// Of those, pages of files that change.
    changing: AtomicU64,
    /// Processes forked by workers and not yet ended.
    children: AtomicU64,
    /// How often each operation had an effect.
    done: [AtomicU64; operation::ALL.len()],
    /// Merges that had no memory.
    refused: AtomicU64,
    /// Merged pages that came back out of a pipe.
    spliced_merged: AtomicU64,
    /// Page frames taken out of use.
    offlined: AtomicU64,
    /// Of these, frames that failed since the last time that all was to begin anew.
    poisoned: AtomicU64,
    areas_taken: [AtomicBool; AREAS],
    stop: AtomicBool,
    differences: AtomicUsize,
    text_len: AtomicUsize,
    text: [AtomicU8; TEXT],
}

pub struct Shared {
    block: &'static Block,
    end: Instant,
}

impl Shared {
    pub fn new(end: Instant) -> Result<Self> {
        let pages = size_of::<Block>().div_ceil(PAGE);
        let map = Map::new(pages, WRITE, MAP_SHARED | MAP_ANONYMOUS, None)?;
        let block = map.addr() as *const Block;
        std::mem::forget(map);
        // SAFETY: zeroed memory of that size, never unmapped, and all of it atomics, for which zeros are valid.
        let block = unsafe { &*block };
        Ok(Self { block, end })
    }

    /// Begins anew: nothing differs, no process of before is there, and time ends then. Totals go on.
    pub fn renew(&mut self, end: Instant) {
        self.end = end;
        let block = self.block;
        block.poisoned.store(0, Relaxed);
        block.children.store(0, Relaxed);
        block
            .areas_taken
            .iter()
            .for_each(|one| one.store(false, Relaxed));
        block.differences.store(0, SeqCst);
        block.stop.store(false, SeqCst);
    }

    pub fn running(&self) -> bool {
        !self.block.stop.load(Relaxed) && Instant::now() < self.end
    }

    /// For everybody the time is over.
    pub fn stop(&self) {
        self.block.stop.store(true, SeqCst);
    }

    pub fn count_operation(&self) {
        self.block.operations.fetch_add(1, Relaxed);
    }
    pub fn count_merge(&self) {
        self.block.merges.fetch_add(1, Relaxed);
    }
    pub fn count_compared(&self, pages: Compared) {
        self.block.compared.fetch_add(pages.all, Relaxed);
        self.block.changing.fetch_add(pages.changing, Relaxed);
    }
    pub fn changing(&self) -> u64 {
        self.block.changing.load(Relaxed)
    }
    pub fn operations(&self) -> u64 {
        self.block.operations.load(Relaxed)
    }
    pub fn merges(&self) -> u64 {
        self.block.merges.load(Relaxed)
    }
    pub fn forks(&self) -> u64 {
        self.block.forks.load(Relaxed)
    }
    pub fn compared(&self) -> u64 {
        self.block.compared.load(Relaxed)
    }

    pub fn count_done(&self, operation: Operation) {
        self.block.done[operation as usize].fetch_add(1, Relaxed);
    }
    pub fn count_refused(&self) {
        self.block.refused.fetch_add(1, Relaxed);
    }
    pub fn count_spliced_merged(&self, pages: u64) {
        self.block.spliced_merged.fetch_add(pages, Relaxed);
    }
    pub fn spliced_merged(&self) -> u64 {
        self.block.spliced_merged.load(Relaxed)
    }
    pub fn done(&self, operation: Operation) -> u64 {
        self.block.done[operation as usize].load(Relaxed)
    }
    pub fn refused(&self) -> u64 {
        self.block.refused.load(Relaxed)
    }

    /// Asks for one more page frame to be taken out of use.
    pub fn may_offline(&self, most: u64) -> bool {
        self.block.offlined.fetch_add(1, Relaxed) < most
    }

    /// A frame failed, and with it the pages of whoever mapped it may be gone.
    pub fn count_poisoned(&self) {
        self.block.poisoned.fetch_add(1, Relaxed);
    }
    pub fn poisoned(&self) -> bool {
        self.block.poisoned.load(Relaxed) > 0
    }

    /// A part of the disk for this process alone, until given back.
    pub fn take_area(&self) -> Option<usize> {
        let taken = |area: &AtomicBool| !area.swap(true, Relaxed);
        self.block.areas_taken.iter().position(taken)
    }
    pub fn give_area(&self, area: usize) {
        self.block.areas_taken[area].store(false, Relaxed);
    }

    /// Asks for one more child; false if there are that many already.
    pub fn may_fork(&self, most: u64) -> bool {
        let more = |now| (now < most).then_some(now + 1);
        let may = self
            .block
            .children
            .fetch_update(Relaxed, Relaxed, more)
            .is_ok();
        self.block.forks.fetch_add(u64::from(may), Relaxed);
        may
    }
    pub fn child_ended(&self) {
        self.block.children.fetch_sub(1, Relaxed);
    }

    /// Stops everybody; the first to call tells why.
    pub fn differ(&self, text: &str) {
        if self.block.differences.fetch_add(1, SeqCst) == 0 {
            for (place, byte) in self.block.text.iter().zip(text.bytes()) {
                place.store(byte, Relaxed);
            }
            self.block.text_len.store(text.len().min(TEXT), SeqCst);
        }
        self.stop();
    }

    pub fn difference(&self) -> Option<String> {
        (self.block.differences.load(SeqCst) > 0).then(|| {
            let len = self.block.text_len.load(SeqCst);
            let bytes: Vec<u8> = self.block.text[..len]
                .iter()
                .map(|byte| byte.load(Relaxed))
                .collect();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
}
