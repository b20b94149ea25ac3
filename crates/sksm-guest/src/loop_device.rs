//! Block devices on memory: reads and writes really go through a block layer.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::memory::PAGE;
use crate::process::check;
use crate::report::skip;

/// A loop device, which goes away when nobody has it open any more.
pub struct LoopDevice {
    pub path: PathBuf,
    pub file: File,
}

impl LoopDevice {
    /// A block device with what is in this file; `flags` are for opening it. Skips the test where there are no loop devices.
    pub fn on(backing: &File, flags: i32) -> Result<Self> {
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
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path)?;
        // SAFETY: a configuration of the size that the kernel reads.
        check(unsafe { libc::ioctl(file.as_raw_fd(), CONFIGURE as _, config.as_ptr()) })
            .context("cannot set up a loop device")?;
        Ok(Self { path, file })
    }
}
