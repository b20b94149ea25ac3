//! Ends this program when it is made to wait for ever.
//!
//! Pages of another process are read when they are there; one that went a moment before is brought back by the read. If it is of a file
//! of a file system in user space, or its faults are handled by its own process, that need never end, and no signal is looked at meanwhile.
//! Who waits so takes no CPU time. A piece of work that does may take as long as it likes: on a slow machine it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::state;
use crate::cpu_clock::CpuClock;
use crate::{hung, output};

/// It is looked at so often, or sooner where patience is short.
const EVERY: Duration = Duration::from_secs(30);

pub struct Watchdog {
    /// The number of the piece of work that goes on; even: none does.
    work: Arc<AtomicU64>,
}

impl Watchdog {
    /// Watches over what this thread does. Whose memory it waits for after so long is written into this file.
    pub fn start(patience: Duration, file: PathBuf) -> Self {
        let work: Arc<AtomicU64> = Arc::default();
        let (watched, clock) = (work.clone(), CpuClock::of_this_thread());
        std::thread::spawn(move || {
            let mut waits = Waits::new(patience);
            loop {
                std::thread::sleep(EVERY.min(patience / 4));
                let seen = Seen {
                    work: watched.load(Ordering::Relaxed),
                    cpu: clock.read(),
                };
                if waits.look(seen, Instant::now()) {
                    tell(hung::read_last(), &file);
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

/// Who makes this wait, and what becomes of it.
fn tell(pid: u32, file: &Path) {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let next = match remember(pid, file) {
        Ok(()) => "the next one leaves it alone".to_owned(),
        Err(error) => format!("to leave it alone: --exclude {pid} ({error:#})"),
    };
    output::note(&format!(
        "process {pid} ({}) makes whoever reads its memory wait for ever; ends, as nothing else can be done; {next}",
        name.trim_end()
    ));
}

fn remember(pid: u32, file: &Path) -> Result<()> {
    Ok(state::replace(file, &hung::add(pid)?)?)
}

/// How long the same was seen.
struct Waits {
    patience: Duration,
    last: Option<(Seen, Instant)>,
}

impl Waits {
    fn new(patience: Duration) -> Self {
        Waits {
            patience,
            last: None,
        }
    }

    /// Whether a piece of work waits for ever.
    fn look(&mut self, seen: Seen, now: Instant) -> bool {
        let (before, since) = *self.last.get_or_insert((seen, now));
        if before != seen || seen.work % 2 == 0 {
            self.last = Some((seen, now));
            return false;
        }
        now - since >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After so many seconds each: the piece of work, its CPU time, and whether it waits for ever.
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
