//! userfaultfd: who has one decides what becomes of faults in the ranges that it is registered for.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{Context, Result};

use crate::skip::skip;
use crate::syscall::check;

// From linux/userfaultfd.h.
const API: u64 = 0xaa;
pub const FEATURES_WP: u64 = 1;
pub const FEATURES_WP_ASYNC: u64 = 1 << 15 | 1 << 13;
pub const FEATURES_MOVE: u64 = 1 << 16;
/// Since Linux 7.3.
pub const FEATURES_RWP: u64 = 1 << 17;
pub const FEATURES_RWP_ASYNC: u64 = 1 << 17 | 1 << 18;
const IOCTL_API: u64 = 0xc018_aa3f;
const IOCTL_REGISTER: u64 = 0xc020_aa00;
pub const IOCTL_WRITE_PROTECT: u64 = 0xc018_aa06;
const IOCTL_COPY: u64 = 0xc028_aa03;
const IOCTL_ZERO: u64 = 0xc020_aa04;
const IOCTL_MOVE: u64 = 0xc028_aa05;
const IOCTL_RW_PROTECT: u64 = 0xc018_aa09;
pub const REGISTER_MISSING: u64 = 1;
pub const REGISTER_WP: u64 = 2;
pub const REGISTER_RWP: u64 = 8;
pub const PROTECT: u64 = 1;

pub fn ioctl<const WORDS: usize>(
    uffd: &File,
    request: u64,
    words: &mut [u64; WORDS],
) -> io::Result<()> {
    // The size is a part of the request.
    assert!(request as usize >> 16 & 0x3fff <= WORDS * 8);
    // SAFETY: there are as many words as the request takes.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), request as _, words.as_mut_ptr()) }).map(drop)
}

/// Opens one with these features. Skips the test if the kernel has them not.
pub fn open(features: u64, what: &str) -> Result<File> {
    // SAFETY: takes numbers only.
    let fd = match check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) }) {
        Ok(fd) => fd as i32,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            return skip("no userfaultfd in this kernel (CONFIG_USERFAULTFD)");
        }
        Err(error) => return Err(error).context("userfaultfd"),
    };
    // SAFETY: a new descriptor that nothing else owns.
    let uffd = unsafe { File::from_raw_fd(fd) };
    if ioctl(&uffd, IOCTL_API, &mut [API, features, 0]).is_err() {
        return skip(format!("no {what} by userfaultfd on this architecture"));
    }
    Ok(uffd)
}

/// For so many bytes from `addr` on.
pub fn register(uffd: &File, (addr, len): (usize, usize), mode: u64) -> io::Result<()> {
    ioctl(
        uffd,
        IOCTL_REGISTER,
        &mut [addr as u64, len as u64, mode, 0],
    )
}

/// Write-protects so many bytes from `addr` on.
pub fn protect(uffd: &File, (addr, len): (usize, usize)) -> io::Result<()> {
    ioctl(
        uffd,
        IOCTL_WRITE_PROTECT,
        &mut [addr as u64, len as u64, PROTECT],
    )
}

/// Traps each access to so many bytes from `addr` on.
pub fn trap(uffd: &File, (addr, len): (usize, usize)) -> io::Result<()> {
    ioctl(
        uffd,
        IOCTL_RW_PROTECT,
        &mut [addr as u64, len as u64, PROTECT],
    )
}

/// Moves what is at one address, and so many bytes after it, to another, where nothing is.
pub fn move_pages(uffd: &File, from: usize, to: usize, len: usize) -> io::Result<()> {
    // From where, to where, how much, how; and what was moved.
    ioctl(
        uffd,
        IOCTL_MOVE,
        &mut [to as u64, from as u64, len as u64, 0, 0],
    )
}

/// Puts a copy where nothing is.
pub fn copy(uffd: &File, from: usize, to: usize, len: usize) -> io::Result<()> {
    ioctl(
        uffd,
        IOCTL_COPY,
        &mut [to as u64, from as u64, len as u64, 0, 0],
    )
}

/// Puts zeros where nothing is.
pub fn zero(uffd: &File, (addr, len): (usize, usize)) -> io::Result<()> {
    ioctl(uffd, IOCTL_ZERO, &mut [addr as u64, len as u64, 0, 0])
}
