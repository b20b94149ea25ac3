//! Ends this program when it is made to wait for ever.
//!
//! Pages of another process are read when they are there; one that went a moment before is brought back by the read. If it is of a file
//! of a file system in user space, or its faults are handled by its own process, that need never end, and no signal is looked at meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::output;

/// No piece of work takes so long by itself.
const PATIENCE: Duration = Duration::from_secs(300);
const EVERY: Duration = Duration::from_secs(30);

pub struct Watchdog {
    begun: Instant,
    /// When the piece of work began that goes on, in seconds, and one more; 0: none does.
    since: Arc<AtomicU64>,
}

impl Watchdog {
    pub fn start() -> Self {
        let watchdog = Watchdog {
            begun: Instant::now(),
            since: Arc::default(),
        };
        let (begun, since) = (watchdog.begun, watchdog.since.clone());
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(EVERY);
                if late(since.load(Ordering::Relaxed), begun.elapsed()) {
                    output::note(
                        "a process's memory can neither be read nor fails to be; ends, as nothing else can be done",
                    );
                    // SAFETY: ends this process, also where a thread waits in the kernel.
                    unsafe { libc::_exit(1) };
                }
            }
        });
        watchdog
    }

    /// Does a piece of work, and watches over it.
    pub fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        let now = self.begun.elapsed().as_secs() + 1;
        self.since.store(now, Ordering::Relaxed);
        let done = work();
        self.since.store(0, Ordering::Relaxed);
        done
    }
}

fn late(since: u64, now: Duration) -> bool {
    since > 0 && now.as_secs() + 1 > since + PATIENCE.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_does_not_end_is_late() {
        let now = Duration::from_secs(1000);
        assert!(!late(0, now) && !late(1001, now) && !late(701, now));
        assert!(late(700, now));
    }
}
