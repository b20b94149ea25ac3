//! Gives this process up when it is made to wait for ever.
//!
//! Pages of another process are read when they are there; one that went a moment before is brought back by the read. If it is of a file
//! of a file system in user space, or its faults are handled by its own process, that need never end, and no signal is looked at meanwhile.
//! Who waits so takes hardly any CPU time, however pages trickle in. A piece of work that does may take as long as it likes: on a slow
//! machine it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::worker::Line;
use crate::cpu_clock::CpuClock;
use crate::hung;

/// It is looked at so often, or sooner where patience is short.
const EVERY: Duration = Duration::from_secs(30);
/// Who works takes more than one part in so many of a CPU.
const PART: u32 = 100;

pub struct Watchdog {
    /// The number of the piece of work that goes on; even: none does.
    work: Arc<AtomicU64>,
}

impl Watchdog {
    /// Watches over what this thread does. Whose memory it waits for after so long is said by the line.
    pub fn start(patience: Duration, mut line: Line) -> Self {
        let work: Arc<AtomicU64> = Arc::default();
        let (watched, clock) = (work.clone(), CpuClock::of_this_thread());
        std::thread::spawn(move || {
            let mut waits = Waits::new(patience);
            loop {
                line.listen(EVERY.min(patience / 4));
                let seen = Seen {
                    work: watched.load(Ordering::Relaxed),
                    cpu: clock.read(),
                };
                if waits.look(seen, Instant::now()) {
                    // Where nobody is left to be told it ends as well.
                    line.give_up(hung::being_read().as_ref()).ok();
                    // Ends all threads but the one that cannot.
                    // SAFETY: ends this process.
                    unsafe { libc::_exit(1) };
                }
            }
        });
        Watchdog { work }
    }

    /// A piece of work begins.
    pub fn begin(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
        hung::reads(0);
    }
}

#[derive(Clone, Copy)]
struct Seen {
    work: u64,
    cpu: Duration,
}

/// Since when hardly anything was done for a piece of work.
struct Waits {
    patience: Duration,
    since: Option<(Seen, Instant)>,
}

impl Waits {
    fn new(patience: Duration) -> Self {
        Waits {
            patience,
            since: None,
        }
    }

    /// Whether a piece of work waits for ever.
    fn look(&mut self, seen: Seen, now: Instant) -> bool {
        let (before, since) = *self.since.get_or_insert((seen, now));
        let other = before.work != seen.work || seen.work % 2 == 0;
        if other || seen.cpu - before.cpu > self.patience / PART {
            self.since = Some((seen, now));
            return false;
        }
        now - since >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After so many seconds each: the piece of work, its CPU time in ms, and whether it waits for ever.
    fn looks(all: &[(u64, u64, u64, bool)]) {
        let start = Instant::now();
        let mut waits = Waits::new(Duration::from_secs(300));
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
    fn work_that_trickles_is_late() {
        looks(&[(0, 1, 5, false), (150, 1, 500, false), (300, 1, 900, true)]);
    }

    #[test]
    fn slow_work_is_not_late() {
        looks(&[
            (0, 1, 5, false),
            (290, 1, 3006, false),
            (580, 1, 6007, false),
        ]);
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
