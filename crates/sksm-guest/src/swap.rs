//! Swap space on a compressed RAM disk (zram), or in a file.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::loop_device::LoopDevice;
use crate::memory::{PAGE, memfd};
use crate::process::check;
use crate::report::skip;

const DEVICE: &str = "/dev/zram0";
const ZRAM_PAGES: usize = (512 << 20) / PAGE;
const FILE_PAGES: usize = (64 << 20) / PAGE;
/// The file system has room for its own tables too.
const DISK_PAGES: usize = (72 << 20) / PAGE;

/// Swap space that is taken away again when this is dropped.
pub struct Swap {
    /// Where the file system with the swap file is.
    mounted: Option<PathBuf>,
}

impl Swap {
    /// Turns swap on. Skips the test where there is no zram.
    pub fn on() -> Result<Self> {
        if !Path::new(DEVICE).exists() {
            return skip("no zram device to swap to (CONFIG_ZRAM)");
        }
        fs::write("/sys/block/zram0/reset", "1").context("cannot reset zram0")?;
        let size = ZRAM_PAGES * PAGE;
        fs::write("/sys/block/zram0/disksize", size.to_string()).context("cannot size zram0")?;
        swap_to(Path::new(DEVICE), ZRAM_PAGES)?;
        Ok(Self { mounted: None })
    }

    /// Turns swap on to a file of an ext2 file system, which lies on a loop device.
    pub fn on_file() -> Result<Self> {
        let disk = LoopDevice::on(&memfd(DISK_PAGES)?, 0)?;
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext2", "-b", "4096"])
            .arg(&disk.path)
            .stdout(Stdio::null())
            .status()
            .context("cannot run mke2fs: install e2fsprogs")?;
        ensure!(made.success(), "mke2fs: {made}");
        let at = PathBuf::from(format!("/tmp/sksm-swap-{}", std::process::id()));
        fs::create_dir(&at)?;
        let (from, to) = (path(&disk.path)?, path(&at)?);
        // SAFETY: valid strings.
        check(unsafe {
            libc::mount(
                from.as_ptr(),
                to.as_ptr(),
                c"ext2".as_ptr(),
                0,
                std::ptr::null(),
            )
        })
        .context("cannot mount ext2")?;
        let this = Self {
            mounted: Some(at.clone()),
        };
        // Swap files have no holes.
        let file = at.join("swap");
        fs::write(&file, vec![0; FILE_PAGES * PAGE])?;
        fs::set_permissions(&file, Permissions::from_mode(0o600))?;
        swap_to(&file, FILE_PAGES)?;
        Ok(this)
    }
}

fn path(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Makes a file or device swap space, and turns that on.
fn swap_to(file: &Path, pages: usize) -> Result<()> {
    let device = OpenOptions::new().write(true).open(file)?;
    device
        .write_all_at(&header(pages), 0)
        .context("cannot write swap header")?;
    File::sync_all(&device)?;
    drop(device);
    let file = path(file)?;
    // SAFETY: a valid path; the space holds nothing but the swap header just written.
    check(unsafe { libc::swapon(file.as_ptr(), 0) })
        .context("swapon")
        .map(drop)
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Err(error) = off_all() {
            eprintln!("swapoff: {error:#}");
        }
        if let Some(at) = &self.mounted {
            let unmounted = path(at).map(|path| {
                // SAFETY: a valid path.
                check(unsafe { libc::umount(path.as_ptr()) })
            });
            if !matches!(unmounted, Ok(Ok(_))) || fs::remove_dir(at).is_err() {
                eprintln!("cannot unmount {}: {unmounted:?}", at.display());
            }
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
fn header(pages: usize) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let last_page = (pages - 1) as u32;
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    page
}
