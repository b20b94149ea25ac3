//! The clocks of CPU time.

use std::time::Duration;

pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// Of this process, with all its threads.
    pub const PROCESS: Self = Self(libc::CLOCK_PROCESS_CPUTIME_ID);
    /// Of whatever thread reads it.
    pub const READER: Self = Self(libc::CLOCK_THREAD_CPUTIME_ID);

    /// Of this thread, whoever reads it.
    pub fn of_this_thread() -> Self {
        let mut clock = 0;
        // SAFETY: this thread, and a place for the clock.
        match unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } {
            0 => Self(clock),
            // That of all threads, the best that there is then.
            _ => Self::PROCESS,
        }
    }

    pub fn read(&self) -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes one structure, into ours.
        unsafe { libc::clock_gettime(self.0, &mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}
