//! Memory of a device, as the kernel's own test driver (CONFIG_TEST_HMM) simulates it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};

use crate::memory::map::Map;
use crate::skip::skip;
use crate::syscall::check;

const DEVICE: &str = "/dev/hmm_dmirror0";

/// A device that works on this process's memory, and has some of its own.
pub struct Device(File);

/// `struct hmm_dmirror_cmd`.
#[repr(C)]
struct Command {
    addr: u64,
    buffer: u64,
    pages: u64,
    copied: u64,
    faults: u64,
}

impl Device {
    /// Skips the test where there is none. It is this process's alone: a forked child opens its own.
    pub fn open() -> Result<Self> {
        if !Path::new(DEVICE).exists() {
            return skip("no simulated device with memory (CONFIG_TEST_HMM)");
        }
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Self(device.context(DEVICE)?))
    }

    /// Moves pages to the device's memory, where the CPU cannot reach them: those that can be moved.
    pub fn take(&self, map: &Map) -> Result<()> {
        // It tells the contents of what it has moved, and complains if that is not all.
        let mut bytes = vec![0u8; map.len()];
        match self.command(2, map, bytes.as_mut_ptr()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.context("HMM_DMIRROR_MIGRATE_TO_DEV"),
        }
    }

    /// Moves them back.
    pub fn give_back(&self, map: &Map) -> Result<()> {
        self.command(3, map, std::ptr::null_mut())
            .context("HMM_DMIRROR_MIGRATE_TO_SYS")
    }

    /// What the device knows of each page.
    pub fn snapshot(&self, map: &Map) -> Result<Vec<Seen>> {
        let mut seen = vec![0u8; map.pages()];
        self.command(4, map, seen.as_mut_ptr())
            .context("HMM_DMIRROR_SNAPSHOT")?;
        Ok(seen.into_iter().map(Seen).collect())
    }

    fn command(&self, number: u64, map: &Map, buffer: *mut u8) -> io::Result<()> {
        /// Of `_IOWR('H', number, struct hmm_dmirror_cmd)`.
        const CODE: u64 = 3 << 30 | (size_of::<Command>() as u64) << 16 | (b'H' as u64) << 8;
        let mut command = Command {
            addr: map.addr() as u64,
            buffer: buffer as u64,
            pages: map.pages() as u64,
            copied: 0,
            faults: 0,
        };
        let request = (CODE | number) as _;
        // SAFETY: a command of the size that the kernel expects, with a buffer that is large enough; contents do not change.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut command) }).map(drop)
    }
}

/// How the device sees a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen(u8);

impl Seen {
    /// The page is in this device's memory.
    pub fn on_device(self) -> bool {
        self.0 & 0xf0 == 0x20
    }
}
