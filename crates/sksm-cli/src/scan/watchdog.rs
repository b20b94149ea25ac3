//! Ends this program when it is made to wait for ever.
//!
//! Pages of another process are read when they are there; one that went a moment before is brought back by the read. If it is of a file
//! of a file system in user space, or its faults are handled by its own process, that need never end, and no signal is looked at meanwhile.
//! Who waits so takes no CPU time. A piece of work that does may take as long as it likes: on a slow machine it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cpu_clock::CpuClock;
use crate::output;

/// Nothing that ends makes the scanner wait so long.
const PATIENCE: Duration = Duration::from_secs(300);
const EVERY: Duration = Duration::from_secs(30);

pub struct Watchdog {
    /// The number of the piece of work that goes on; even: none does.
    work: Arc<AtomicU64>,
}

impl Watchdog {
    /// Watches over what this thread does.
    pub fn start() -> Self {
        let work: Arc<AtomicU64> = Arc::default();
        let (watched, clock) = (work.clone(), CpuClock::of_this_thread());
        std::thread::spawn(move || {
            let mut waits = Waits::default();
            loop {
                std::thread::sleep(EVERY);
                let seen = Seen {
                    work: watched.load(Ordering::Relaxed),
                    cpu: clock.read(),
                };
                if waits.look(seen, Instant::now()) {
                    output::note(
                        "a process's memory can neither be read nor fails to be; ends, as nothing else can be done",
                    );
                    // SAFETY: ends this process, also where a thread waits in the kernel.
                    unsafe { libc::_exit(1) };
                }
            }
        });
        Watchdog { work }
    }

    /// Does a piece of work, and watches over it.
    pub fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        self.work.fetch_add(1, Ordering::Relaxed);
        let done = work();
        self.work.fetch_add(1, Ordering::Relaxed);
        done
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    work: u64,
    cpu: Duration,
}

/// How long the same was seen.
#[derive(Default)]
struct Waits(Option<(Seen, Instant)>);

impl Waits {
    /// Whether a piece of work waits for ever.
    fn look(&mut self, seen: Seen, now: Instant) -> bool {
        let (before, since) = *self.0.get_or_insert((seen, now));
        if before != seen || seen.work % 2 == 0 {
            self.0 = Some((seen, now));
            return false;
        }
        now - since >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After so many seconds each: the piece of work, its CPU time, and whether it waits for ever.
    fn looks(all: &[(u64, u64, u64, bool)]) {
        let start = Instant::now();
        let mut waits = Waits::default();
        for &(seconds, work, cpu, late) in all {
            let cpu = Duration::from_millis(cpu);
            let now = start + Duration::from_secs(seconds);
            assert_eq!(waits.look(Seen { work, cpu }, now), late, "at {seconds} s");
        }
    }

    #[test]
    fn work_that_waits_for_ever_is_late() {
        looks(&[(0, 1, 5, false), (299, 1, 5, false), (300, 1, 5, true)]);
    }

    #[test]
    fn slow_work_is_not_late() {
        looks(&[(0, 1, 5, false), (290, 1, 6, false), (580, 1, 7, false)]);
        looks(&[(0, 1, 5, false), (290, 3, 5, false), (580, 5, 5, false)]);
    }

    #[test]
    fn who_does_nothing_is_not_late() {
        looks(&[(0, 2, 5, false), (1000, 2, 5, false)]);
    }

    #[test]
    fn the_clock_is_that_of_the_thread_that_works() {
        let clock = CpuClock::of_this_thread();
        let read = std::thread::spawn(move || {
            let before = clock.read();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(50) {}
            (before, clock.read())
        });
        let (before, after) = read.join().unwrap();
        assert!(
            after - before < Duration::from_millis(40),
            "{before:?} {after:?}"
        );
    }
}
