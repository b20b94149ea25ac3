//! Which of the kernel's code runs, as a kernel built for it tells (CONFIG_KCOV): for each task the instructions at which basic
//! blocks begin. Work items and other threads of the kernel do not tell.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use anyhow::{Context, Result};
use libc::{MAP_ANONYMOUS, MAP_SHARED};

use crate::memory::map::{Map, WRITE};
use crate::page::PAGE;
use crate::syscall::check;

const PATH: &str = "/sys/kernel/debug/kcov";
// From linux/kcov.h.
const INIT_TRACE: u64 = 0x8008_6301;
const ENABLE: u64 = 0x6364;
const DISABLE: u64 = 0x6365;
const TRACE_PC: u64 = 0;
/// Tasks that are listened to at a time.
const TASKS: usize = 10;
/// Blocks that a task can tell of before it is asked.
const ENTRIES: usize = 1 << 15;
/// Places for blocks, of which there are a few tens of thousands.
pub const PLACES: usize = 1 << 16;

/// What all tasks of a run share.
#[repr(C)]
struct Block {
    taken: [AtomicBool; TASKS],
    /// Where each place's block is in the kernel; 0 where there is none yet.
    addresses: [AtomicU64; PLACES],
    /// How often it ran since the last clearing, as far as a byte holds.
    counts: [AtomicU8; PLACES],
}

pub struct Coverage {
    block: &'static Block,
    buffers: Vec<Buffer>,
}

/// Through which one task tells.
struct Buffer {
    control: File,
    /// The number of entries, and the entries.
    words: &'static [AtomicU64],
}

impl Coverage {
    /// None in a kernel that does not tell.
    pub fn open() -> Result<Option<Self>> {
        if !std::fs::exists(PATH)? {
            return Ok(None);
        }
        let pages = size_of::<Block>().div_ceil(PAGE);
        let map = Map::new(pages, WRITE, MAP_SHARED | MAP_ANONYMOUS, None)?;
        let block = map.addr() as *const Block;
        std::mem::forget(map);
        // SAFETY: zeroed memory of that size, never unmapped, and all of it atomics, for which zeros are valid.
        let block = unsafe { &*block };
        let buffers = (0..TASKS).map(|_| Buffer::open());
        Ok(Some(Self {
            block,
            buffers: buffers.collect::<Result<_>>()?,
        }))
    }

    /// Listens to this thread. None if there is no buffer left for it.
    pub fn listen(&self) -> Result<Option<Listener<'_>>> {
        let free = |taken: &AtomicBool| !taken.swap(true, Acquire);
        let Some(number) = self.block.taken.iter().position(free) else {
            return Ok(None);
        };
        let buffer = &self.buffers[number];
        buffer.words[0].store(0, Relaxed);
        buffer.call(ENABLE, TRACE_PC).context("KCOV_ENABLE")?;
        Ok(Some(Listener {
            coverage: self,
            number,
        }))
    }

    /// Forgets what ran, and which buffers were had by tasks that are no more.
    pub fn clear(&self) {
        self.block
            .taken
            .iter()
            .for_each(|one| one.store(false, Relaxed));
        self.block
            .counts
            .iter()
            .for_each(|one| one.store(0, Relaxed));
    }

    /// How often each place's block ran. All of it may change as long as tasks are listened to.
    pub fn counts(&self) -> (*mut u8, usize) {
        (self.block.counts.as_ptr() as *mut u8, PLACES)
    }

    /// The blocks that ever ran.
    pub fn reached(&self) -> Vec<u64> {
        let addresses = self.block.addresses.iter();
        let mut reached: Vec<u64> = addresses.map(|one| one.load(Relaxed)).collect();
        reached.retain(|address| *address != 0);
        reached.sort_unstable();
        reached
    }

    fn count(&self, address: u64) {
        // Blocks are some bytes apart; the odd number spreads them.
        let mut place = (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % PLACES;
        for _ in 0..PLACES {
            let there = self.block.addresses[place].load(Relaxed);
            let mine = there == address
                || there == 0
                    && match self.block.addresses[place]
                        .compare_exchange(0, address, Relaxed, Relaxed)
                    {
                        Ok(_) => true,
                        Err(other) => other == address,
                    };
            if mine {
                let count = &self.block.counts[place];
                count.store(count.load(Relaxed).saturating_add(1), Relaxed);
                return;
            }
            place = (place + 1) % PLACES;
        }
    }
}

impl Buffer {
    fn open() -> Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open(PATH);
        let control = control.context(PATH)?;
        let mut buffer = Self {
            control,
            words: &[],
        };
        buffer
            .call(INIT_TRACE, ENTRIES as u64)
            .context("KCOV_INIT_TRACE")?;
        let pages = ENTRIES * 8 / PAGE;
        let map = Map::new(pages, WRITE, MAP_SHARED, Some(&buffer.control))?;
        let words = map.addr() as *const AtomicU64;
        std::mem::forget(map);
        // SAFETY: memory of that size, never unmapped, that the kernel writes word by word.
        buffer.words = unsafe { std::slice::from_raw_parts(words, ENTRIES) };
        Ok(buffer)
    }

    fn call(&self, request: u64, argument: u64) -> io::Result<()> {
        // SAFETY: takes numbers only; the kernel writes to the mapping that is there for it.
        check(unsafe { libc::ioctl(self.control.as_raw_fd(), request as _, argument) }).map(drop)
    }
}

/// Listens to the thread that made it.
pub struct Listener<'a> {
    coverage: &'a Coverage,
    number: usize,
}

impl Listener<'_> {
    /// Counts what ran since it was asked last.
    pub fn ask(&self) {
        let words = self.coverage.buffers[self.number].words;
        let many = (words[0].load(Relaxed) as usize).min(ENTRIES - 1);
        for word in &words[1..=many] {
            self.coverage.count(word.load(Relaxed));
        }
        words[0].store(0, Relaxed);
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.ask();
        // Also after an error nobody listens.
        self.coverage.buffers[self.number].call(DISABLE, 0).ok();
        self.coverage.block.taken[self.number].store(false, Release);
    }
}
