//! Swap space on a compressed RAM disk (zram).

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::memory::PAGE;
use crate::report::skip;

const DEVICE: &str = "/dev/zram0";
const SIZE: usize = 512 << 20;

/// Swap space that is taken away again when this is dropped.
pub struct Swap(());

impl Swap {
    /// Turns swap on. Skips the test where there is no zram.
    pub fn on() -> Result<Self> {
        if !Path::new(DEVICE).exists() {
            return skip("no zram device to swap to (CONFIG_ZRAM)");
        }
        fs::write("/sys/block/zram0/reset", "1").context("cannot reset zram0")?;
        fs::write("/sys/block/zram0/disksize", SIZE.to_string()).context("cannot size zram0")?;
        let device = OpenOptions::new().write(true).open(DEVICE)?;
        device
            .write_all_at(&header(), 0)
            .context("cannot write swap header")?;
        drop(device);
        let path = CString::new(DEVICE)?;
        // SAFETY: a valid path; the device holds nothing but the swap header just written.
        match unsafe { libc::swapon(path.as_ptr(), 0) } {
            0 => Ok(Self(())),
            _ => Err(std::io::Error::last_os_error()).context("swapon"),
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Err(error) = off_all() {
            eprintln!("swapoff: {error:#}");
        }
    }
}

/// Takes all swap space away, reading back what lies there.
pub fn off_all() -> Result<()> {
    let Ok(list) = fs::read_to_string("/proc/swaps") else {
        return Ok(()); // A kernel without swap.
    };
    for line in list.lines().skip(1) {
        let path = CString::new(line.split_whitespace().next().unwrap_or_default())?;
        // SAFETY: a valid path.
        if unsafe { libc::swapoff(path.as_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("swapoff {line}"));
        }
    }
    Ok(())
}

/// The first page of a swap space, as mkswap writes it.
fn header() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let last_page = (SIZE / PAGE - 1) as u32;
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    page
}
