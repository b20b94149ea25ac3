//! What ends a wait: signals.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Signals are noted, and end the wait that they come in.
pub struct Wakes {
    ended: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    /// Read as a file, not as a socket: a filter of system calls may know the one only.
    woken: File,
}

impl Wakes {
    pub fn catch() -> io::Result<Self> {
        let (woken, waker) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let wakes = Wakes {
            ended: Arc::default(),
            reload: Arc::default(),
            woken: File::from(OwnedFd::from(woken)),
        };
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, wakes.ended.clone())?;
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        signal_hook::flag::register(SIGHUP, wakes.reload.clone())?;
        signal_hook::low_level::pipe::register(SIGHUP, waker)?;
        Ok(wakes)
    }

    /// Whether it is to end.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether the configuration is to be read again: once for each signal.
    pub fn reload(&self) -> bool {
        self.reload.swap(false, Ordering::Relaxed)
    }

    /// Waits so long, or until a signal comes.
    pub fn wait(&self, time: Duration) {
        let mut poll = libc::pollfd {
            fd: self.woken.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up: it would ask again at once.
        let time = time.as_nanos().div_ceil(1_000_000);
        // SAFETY: one valid structure.
        unsafe { libc::poll(&mut poll, 1, i32::try_from(time).unwrap_or(i32::MAX)) };
        let mut woken = &self.woken;
        while woken.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    }
}
