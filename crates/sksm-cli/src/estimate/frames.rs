//! Page frames that several processes have in common: their hashes, and what the kernel tells of them.

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

/// How often frames are mapped by all processes, or which flags they have: a number for each.
pub enum Frames {
    Kernel(File),
    /// Without the right to know.
    Unknown,
    #[cfg(test)]
    Pretended(HashMap<u64, u64>),
}

impl Frames {
    /// As far as this process may know.
    pub fn mappings() -> Self {
        File::open("/proc/kpagecount").map_or(Frames::Unknown, Frames::Kernel)
    }

    /// The same of flags.
    pub fn flags() -> Self {
        File::open("/proc/kpageflags").map_or(Frames::Unknown, Frames::Kernel)
    }

    /// Of flags: whether it is known to be a merged page. Kernels without SKSM may say so of every anonymous page, and merge none.
    pub fn merged(&self, frame: u64) -> bool {
        const KSM: u32 = 21;
        frame != 0 && self.of(frame).is_some_and(|flags| flags >> KSM & 1 != 0)
    }

    #[cfg(test)]
    pub fn unknown() -> Self {
        Frames::Unknown
    }

    #[cfg(test)]
    pub fn pretended(frames: HashMap<u64, u64>) -> Self {
        Frames::Pretended(frames)
    }

    pub fn told(&self) -> bool {
        !matches!(self, Frames::Unknown)
    }

    pub fn of(&self, frame: u64) -> Option<u64> {
        match self {
            Frames::Kernel(file) => {
                let mut count = [0; 8];
                file.read_exact_at(&mut count, frame * 8).ok()?;
                Some(u64::from_ne_bytes(count))
            }
            Frames::Unknown => None,
            #[cfg(test)]
            Frames::Pretended(frames) => frames.get(&frame).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_merged_only_where_that_is_known() {
        // Merged and anonymous; anonymous; not told which.
        let flags = Frames::pretended([(5, 1 << 21 | 1 << 12), (6, 1 << 12), (0, 1 << 21)].into());
        assert_eq!(
            [5, 6, 0, 7].map(|frame| flags.merged(frame)),
            [true, false, false, false]
        );
        assert!(flags.told() && !Frames::unknown().told() && !Frames::unknown().merged(5));
    }
}
