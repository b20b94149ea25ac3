//! Files in memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;

use anyhow::Result;

use crate::memory::content::content;
use crate::page::{PAGE, WORDS};
use crate::syscall::check;

/// A file in memory, of that many pages.
pub fn memfd(pages: usize) -> io::Result<File> {
    // SAFETY: a valid name.
    let fd = check(unsafe { libc::memfd_create(c"sksm".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: a new descriptor that nothing else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len((pages * PAGE) as u64)?;
    Ok(file)
}

/// A file in memory with one page of each of these contents.
pub fn with_contents(contents: &[u64]) -> Result<File> {
    let mut file = memfd(0)?;
    for id in contents {
        let page: Vec<u8> = (0..WORDS)
            .flat_map(|word| content(*id, word).to_ne_bytes())
            .collect();
        file.write_all(&page)?;
    }
    Ok(file)
}
