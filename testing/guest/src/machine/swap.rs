//! Swap space on a compressed RAM disk (zram), in a file of a file system on another one, and on a disk that is read ahead.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::machine::disk::Disk;
use crate::memory::file::memfd;
use crate::page::PAGE;
use crate::skip::skip;
use crate::syscall::check;

const DEVICE: &str = "/dev/zram0";
const SIZE: usize = 512 << 20;

/// Of a swap file that is full at times, so that pages go to the device too.
const SMALL: usize = 16 << 20;
/// SWAP_FLAG_PREFER with priority 1: used before the device.
const PREFERRED: i32 = 0x8001;
const HOT_ADD: &str = "/sys/class/zram-control/hot_add";
const HOT_REMOVE: &str = "/sys/class/zram-control/hot_remove";

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
            .write_all_at(&header(SIZE), 0)
            .context("cannot write swap header")?;
        drop(device);
        swap_on(Path::new(DEVICE), 0)?;
        Ok(Self(()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Err(error) = off_all() {
            eprintln!("swapoff: {error:#}");
        }
    }
}

/// A swap file, with a file system of its own that goes when this is dropped.
pub struct SwapFile {
    number: String,
    dir: PathBuf,
}

impl SwapFile {
    /// Turns a small one on, with priority over other swap space. Skips the test where there is no zram or no ext2.
    pub fn on() -> Result<Self> {
        Self::with_size(SMALL)
    }

    /// The same, with room for so many bytes.
    pub fn with_size(size: usize) -> Result<Self> {
        let types = fs::read_to_string("/proc/filesystems")?;
        if !types.contains("\text2\n") || !Path::new(HOT_ADD).exists() {
            return skip(
                "no zram device with a file system to swap to (CONFIG_ZRAM, CONFIG_EXT2_FS)",
            );
        }
        // Reading adds a device and tells its number.
        let number = fs::read_to_string(HOT_ADD).context("cannot add a zram device")?;
        let swap = Self {
            number: number.trim().to_owned(),
            dir: std::env::temp_dir().join(format!("sksm-swap-{}", std::process::id())),
        };
        let device = format!("/dev/zram{}", swap.number);
        let disksize = format!("/sys/block/zram{}/disksize", swap.number);
        // Room for what the file system writes about it, and what it keeps for root.
        let room = size + size / 8 + (8 << 20);
        fs::write(disksize, room.to_string()).context("cannot size zram")?;
        // Busybox has to be there, as the test kernels start with it.
        let made = Command::new("busybox")
            // The blocks of a zram device are no smaller.
            .args(["mke2fs", "-b", "4096", &device])
            .output()
            .context("cannot run busybox mke2fs")?;
        ensure!(
            made.status.success(),
            "mke2fs: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        fs::create_dir_all(&swap.dir)?;
        let (from, to) = (CString::new(device)?, path_string(&swap.dir)?);
        // SAFETY: valid strings, and no options.
        check(unsafe {
            libc::mount(
                from.as_ptr(),
                to.as_ptr(),
                c"ext2".as_ptr(),
                0,
                std::ptr::null(),
            )
        })
        .context("cannot mount the swap file's file system")?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(swap.file())?;
        // Without holes, which the kernel refuses.
        file.write_all(&header(size))?;
        std::io::copy(
            &mut std::io::repeat(0).take((size - PAGE) as u64),
            &mut file,
        )?;
        file.sync_all()?;
        drop(file);
        swap.again()?;
        Ok(swap)
    }

    fn file(&self) -> PathBuf {
        self.dir.join("swap")
    }

    /// Takes it away, reading back what lies there.
    pub fn off(&self) -> Result<()> {
        let path = path_string(&self.file())?;
        // SAFETY: a valid path.
        check(unsafe { libc::swapoff(path.as_ptr()) }).context("swapoff of the file")?;
        Ok(())
    }

    /// Turns it on unless it is on. What lists swap space names none that was turned on in another mount namespace.
    pub fn on_again(&self) -> Result<()> {
        let busy = |error: &anyhow::Error| {
            let cause = error.downcast_ref::<std::io::Error>();
            cause.and_then(std::io::Error::raw_os_error) == Some(libc::EBUSY)
        };
        match self.again() {
            Err(error) if busy(&error) => Ok(()),
            result => result,
        }
    }

    /// Turns it on after it was taken away.
    pub fn again(&self) -> Result<()> {
        swap_on(&self.file(), PREFERRED)
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        // It may be off already.
        self.off().ok();
        if let Ok(dir) = path_string(&self.dir) {
            // SAFETY: a valid path.
            unsafe { libc::umount2(dir.as_ptr(), 0) };
        }
        fs::remove_dir(&self.dir).ok();
        if let Err(error) = fs::write(HOT_REMOVE, &self.number) {
            eprintln!("cannot remove zram{}: {error}", self.number);
        }
    }
}

/// Swap space on a loop device, which mm takes for a disk: it reads ahead, and always through the swap cache.
pub struct SwapDisk(Disk);

impl SwapDisk {
    /// Turns it on. Skips the test where there are no loop devices.
    pub fn on() -> Result<Self> {
        const SIZE: usize = 32 << 20;
        let backing = memfd(SIZE / PAGE)?;
        // All of it now: what writes to it later must not run out of memory.
        // SAFETY: changes the file only.
        check(unsafe { libc::fallocate(backing.as_raw_fd(), 0, 0, SIZE as i64) })?;
        backing.write_all_at(&header(SIZE), 0)?;
        let disk = Disk::over(&backing)?;
        swap_on(disk.path(), 0)?;
        Ok(Self(disk))
    }
}

impl Drop for SwapDisk {
    fn drop(&mut self) {
        // It may be off already.
        if let Ok(path) = path_string(self.0.path()) {
            // SAFETY: a valid path.
            unsafe { libc::swapoff(path.as_ptr()) };
        }
    }
}

fn path_string(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn swap_on(path: &Path, flags: i32) -> Result<()> {
    let name = path_string(path)?;
    // SAFETY: a valid path; what lies there holds nothing but a swap header.
    check(unsafe { libc::swapon(name.as_ptr(), flags) })
        .with_context(|| format!("swapon {}", path.display()))?;
    Ok(())
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
fn header(size: usize) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let last_page = (size / PAGE - 1) as u32;
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    page
}
