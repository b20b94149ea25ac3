//! Page frames that several processes have in common.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

const SHARDS: usize = 64;

/// The hashes of frames that were read, so that none is read for each process that has it.
pub struct Hashes([Mutex<HashMap<u64, u64>>; SHARDS]);

impl Hashes {
    pub fn new() -> Self {
        Hashes(std::array::from_fn(|_| Mutex::default()))
    }

    fn shard(&self, frame: u64) -> &Mutex<HashMap<u64, u64>> {
        &self.0[frame as usize % SHARDS]
    }

    pub fn get(&self, frame: u64) -> Option<u64> {
        let shard = self.shard(frame).lock();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        shard.get(&frame).copied()
    }

    pub fn insert(&self, frame: u64, hash: u64) {
        let shard = self.shard(frame).lock();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        shard.insert(frame, hash);
    }
}

/// How often frames are mapped, by all processes: `/proc/kpagecount`.
pub enum Mappings {
    Kernel(File),
    /// Without the right to know.
    Unknown,
    #[cfg(test)]
    Pretended(HashMap<u64, u64>),
}

impl Mappings {
    /// As far as this process may know.
    pub fn open() -> Self {
        File::open("/proc/kpagecount").map_or(Mappings::Unknown, Mappings::Kernel)
    }

    #[cfg(test)]
    pub fn unknown() -> Self {
        Mappings::Unknown
    }

    #[cfg(test)]
    pub fn pretended(frames: HashMap<u64, u64>) -> Self {
        Mappings::Pretended(frames)
    }

    pub fn of(&self, frame: u64) -> Option<u64> {
        match self {
            Mappings::Kernel(file) => {
                let mut count = [0; 8];
                file.read_exact_at(&mut count, frame * 8).ok()?;
                Some(u64::from_ne_bytes(count))
            }
            Mappings::Unknown => None,
            #[cfg(test)]
            Mappings::Pretended(frames) => frames.get(&frame).copied(),
        }
    }
}
