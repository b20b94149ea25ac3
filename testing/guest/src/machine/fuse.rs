//! A file system of one file whose server may drop what the kernel has cached of it, as servers of network file systems do.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::memory::process::Child;
use crate::page::PAGE;
use crate::skip::skip;
use crate::syscall::check;

const DEVICE: &str = "/dev/fuse";
/// The file's inode, which is the root of its file system.
const ROOT: u64 = 1;
const REGULAR: u32 = 0o100_644;

/// Requests that get another answer than that they are not known.
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
/// Of requests, and of answers.
const REQUEST_HEADER: usize = 40;
const ANSWER_HEADER: usize = 16;

/// The file, mounted where nobody but this process and its children sees it.
pub struct OneFile {
    path: PathBuf,
    /// Answers reads; killed first.
    _server: Child,
    device: File,
}

impl OneFile {
    /// A file whose every byte is `byte`. Skips the test where there is no FUSE.
    pub fn mounted(pages: usize, byte: u8) -> Result<Self> {
        if !Path::new(DEVICE).exists() {
            return skip("no file systems in user space in this kernel (CONFIG_FUSE_FS)");
        }
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        let path = std::env::temp_dir().join(format!("sksm-fuse-{}", std::process::id()));
        File::create(&path).context("cannot make a mount point")?;
        // SAFETY: takes numbers only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).context("unshare of mounts")?;
        mount(
            "none",
            Path::new("/"),
            "",
            libc::MS_REC | libc::MS_PRIVATE,
            "",
        )?;
        let server = Child::spawn(|parent| {
            // There is nothing to read before it is mounted.
            parent.pause()?;
            serve(&device, pages, byte)
        })?;
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=100000,user_id=0,group_id=0");
        mount("sksm", &path, "fuse", 0, &options).context("cannot mount a FUSE file")?;
        server.go()?;
        Ok(Self {
            path,
            _server: server,
            device,
        })
    }

    pub fn open(&self) -> Result<File> {
        let file = File::open(&self.path).context("cannot open the FUSE file")?;
        // The kernel does not know its length before somebody asks.
        ensure!(file.metadata()?.len() > 0, "the FUSE file is empty");
        Ok(file)
    }

    /// Drops all that is cached.
    pub fn invalidate(&self) -> Result<()> {
        const INVAL_INODE: i32 = 2;
        // The inode; from the start; to the end.
        let body = [ROOT, 0, u64::MAX].map(u64::to_ne_bytes).concat();
        send(&self.device, INVAL_INODE, 0, &body).context("cannot invalidate the FUSE file")
    }
}

impl Drop for OneFile {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.path.as_os_str().as_bytes()) {
            // SAFETY: a valid path.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
        fs::remove_file(&self.path).ok();
    }
}

fn mount(source: &str, target: &Path, kind: &str, flags: u64, options: &str) -> Result<()> {
    let text = |text: &str| CString::new(text);
    let (source, kind, options) = (text(source)?, text(kind)?, text(options)?);
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: valid strings.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })
    .context("mount")
    .map(drop)
}

/// Answers until the file system is gone.
fn serve(mut device: &File, pages: usize, byte: u8) -> Result<()> {
    let mut request = vec![0; 64 << 10];
    // It ends with an error, as the device does, when the file system is unmounted.
    while let Ok(len) = device.read(&mut request) {
        ensure!(len >= REQUEST_HEADER, "a request of {len} bytes");
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four"));
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().expect("eight"));
        let (kind, unique) = (word(4), long(8));
        let answer = match kind {
            INIT => Some(init()),
            GETATTR => Some(attributes(pages)),
            OPEN => Some(vec![0; 16]),
            READ => {
                let (offset, size) = (long(REQUEST_HEADER + 8), word(REQUEST_HEADER + 16));
                let left = (pages * PAGE).saturating_sub(offset as usize);
                Some(vec![byte; left.min(size as usize)])
            }
            _ => None,
        };
        let sent = match answer {
            Some(body) => send(device, 0, unique, &body),
            None => send(device, -libc::ENOSYS, unique, &[]),
        };
        // Some want no answer, or are given up meanwhile.
        sent.ok();
    }
    Ok(())
}

fn send(mut device: &File, error: i32, unique: u64, body: &[u8]) -> Result<()> {
    let len = (ANSWER_HEADER + body.len()) as u32;
    let mut message = Vec::new();
    message.extend(len.to_ne_bytes());
    message.extend(error.to_ne_bytes());
    message.extend(unique.to_ne_bytes());
    message.extend(body);
    Ok(device.write_all(&message)?)
}

/// `struct fuse_init_out`: version 7.31, small requests, and nothing special.
fn init() -> Vec<u8> {
    let mut words = [0u32; 16];
    words[..3].copy_from_slice(&[7, 31, 64 << 10]);
    words[5] = 4096;
    words.map(u32::to_ne_bytes).concat()
}

/// `struct fuse_attr_out`, valid for long.
fn attributes(pages: usize) -> Vec<u8> {
    let size = (pages * PAGE) as u64;
    let mut body = [1_000_000, 0, ROOT, size, size / 512, 0, 0, 0]
        .map(u64::to_ne_bytes)
        .concat();
    // Times, mode, links, user, group, device, block size, flags.
    let rest = [0, 0, 0, REGULAR, 1, 0, 0, 0, PAGE as u32, 0];
    body.extend(rest.map(u32::to_ne_bytes).concat());
    body
}
