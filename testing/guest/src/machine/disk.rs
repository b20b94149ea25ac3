//! A block device in memory: reads and writes of it really go through pinned pages.

use std::fs::{File, OpenOptions};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::memory::file::with_contents;
use crate::page::PAGE;
use crate::skip::skip;
use crate::syscall::check;

/// The device, opened with O_DIRECT; it goes when this is dropped and nobody else uses it.
pub struct Disk {
    device: File,
    path: PathBuf,
}

impl Disk {
    /// A device with one page of each of these contents. Skips the test where there are no loop devices.
    pub fn open(contents: &[u64]) -> Result<Self> {
        Self::over(&with_contents(contents)?)
    }

    /// A device over a file, of which it keeps a reference. Skips the test where there are no loop devices.
    pub fn over(backing: &File) -> Result<Self> {
        if !Path::new("/dev/loop-control").exists() {
            return skip("no loop devices in this kernel (CONFIG_BLK_DEV_LOOP)");
        }
        const GET_FREE: u64 = 0x4c82;
        const CONFIGURE: u64 = 0x4c0a;
        const AUTOCLEAR: u32 = 4;
        let control = File::open("/dev/loop-control")?;
        // SAFETY: takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE as _) })?;
        // struct loop_config: descriptor, block size, struct loop_info64 with its flags, reserved.
        let mut config = [0u32; 76];
        config[0] = backing.as_raw_fd() as u32;
        config[1] = PAGE as u32;
        config[15] = AUTOCLEAR;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)?;
        // SAFETY: a configuration of the size that the kernel reads.
        check(unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE as _, config.as_ptr()) })
            .context("cannot set up a loop device")?;
        Ok(Self { device, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Disk {
    type Target = File;

    fn deref(&self) -> &File {
        &self.device
    }
}
