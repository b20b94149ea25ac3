//! How many guests run side by side: as many as the machine's processors and memory allow, and always one.

use std::{
    sync::{Condvar, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Result;
use procfs::{Current, Meminfo};

use crate::{
    ground::interrupt,
    guest::{Boot, memory},
};

/// How often those who wait look for a signal.
const LOOK: Duration = Duration::from_millis(200);

/// Bytes of the largest guest that has its memory in a file.
const LARGEST: u64 = 2 << 30;

/// What a guest takes of processors and memory, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    pub cpus: usize,
    /// In bytes.
    pub memory: u64,
}

impl Share {
    /// Most tests are of one thread: a guest with two processors keeps 1.3 of the machine's busy.
    pub fn of(boot: &Boot) -> Self {
        Self {
            cpus: (boot.cpus() / 2).max(1),
            memory: boot.memory(),
        }
    }
}

pub struct Room {
    all: Share,
    guests: Mutex<Vec<Share>>,
    left: Condvar,
}

impl Room {
    pub fn of_this_machine() -> Self {
        let available = Meminfo::current().ok().and_then(|info| info.mem_available);
        let available = available.unwrap_or(0);
        // Each guest looks for itself whether it fits in there, before any has taken its memory. What holds none is not used.
        let shm = memory::free_shm().filter(|&free| free > LARGEST);
        Self::new(Share {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: shm.map_or(available, |free| free.min(available)),
        })
    }

    fn new(all: Share) -> Self {
        Self {
            all,
            guests: Mutex::default(),
            left: Condvar::new(),
        }
    }

    /// Guests of this kind that it has room for.
    pub fn holds(&self, share: Share) -> usize {
        let by_cpus = self.all.cpus / share.cpus.max(1);
        let by_memory = self.all.memory / share.memory.max(1);
        by_cpus
            .min(usize::try_from(by_memory).unwrap_or(usize::MAX))
            .max(1)
    }

    /// Waits until there is room; it is taken until the place is dropped.
    pub fn enter(&self, share: Share) -> Result<Place<'_>> {
        let mut guests = self.guests();
        while !self.fits(&guests, share) {
            interrupt::check()?;
            let waited = self.left.wait_timeout(guests, LOOK);
            guests = waited.expect("nobody panics with it").0;
        }
        guests.push(share);
        Ok(Place { room: self, share })
    }

    fn fits(&self, guests: &[Share], share: Share) -> bool {
        let cpus: usize = guests.iter().map(|guest| guest.cpus).sum();
        let memory: u64 = guests.iter().map(|guest| guest.memory).sum();
        guests.is_empty()
            || (cpus + share.cpus <= self.all.cpus && memory + share.memory <= self.all.memory)
    }

    fn guests(&self) -> MutexGuard<'_, Vec<Share>> {
        self.guests.lock().expect("nobody panics with it")
    }
}

/// A guest's place in it.
pub struct Place<'a> {
    room: &'a Room,
    share: Share,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut guests = self.room.guests();
        if let Some(at) = guests.iter().position(|&guest| guest == self.share) {
            guests.swap_remove(at);
        }
        self.room.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn share(cpus: usize, gib: u64) -> Share {
        Share {
            cpus,
            memory: gib * GIB,
        }
    }

    #[test]
    fn processors_and_memory_limit_the_guests() {
        let room = Room::new(share(4, 7));
        assert!(room.fits(&[], share(8, 100)));
        assert!(room.fits(&[share(2, 3)], share(2, 4)));
        assert!(!room.fits(&[share(2, 3)], share(3, 1)));
        assert!(!room.fits(&[share(2, 4)], share(1, 4)));
        assert_eq!(room.holds(share(1, 1)), 4);
        assert_eq!(room.holds(share(2, 2)), 2);
        assert_eq!(room.holds(share(2, 4)), 1);
        assert_eq!(room.holds(share(8, 9)), 1);
    }

    #[test]
    fn whoever_leaves_makes_room() {
        let room = Room::new(share(1, 1));
        let first = room.enter(share(1, 1)).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(room.enter(share(1, 1)).unwrap()));
            std::thread::sleep(LOOK / 4);
            assert!(!second.is_finished());
            drop(first);
        });
        assert!(room.guests().is_empty());
    }
}
