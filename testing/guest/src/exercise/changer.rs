//! Changes files under those who have them mapped.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use super::choices::Choices;
use super::shadow::FILE_PAGES;
use super::system::Changing;
use crate::memory::map::{Map, READ};
use crate::page::PAGE;
use crate::syscall::check;

/// Contents that no process writes begin here.
const UNLIKE: u64 = 1 << 20;

/// Changes pages of one file.
pub struct Changer<'a> {
    changing: &'a Changing,
    /// Somebody maps the pages as they are in the file: who drops what is cached asks whether anybody does.
    reader: Map,
    /// What is written.
    new: Map,
}

impl<'a> Changer<'a> {
    const MOST: usize = 8;

    pub fn new(changing: &'a Changing) -> Result<Self> {
        let (file, first) = (changing.file(), changing.first);
        let reader = Map::at(0, FILE_PAGES, READ, libc::MAP_PRIVATE, Some(file), first);
        Ok(Self {
            changing,
            reader: reader.context("cannot map a file that changes")?,
            new: Map::anon(Self::MOST)?,
        })
    }

    /// A hole and other contents in it, or these by O_DIRECT.
    pub fn change(&mut self, choices: &mut Choices) -> Result<bool> {
        let first = choices.below(FILE_PAGES);
        let pages = 1 + choices.below(Self::MOST.min(FILE_PAGES - first));
        (first..first + pages).for_each(|page| _ = self.reader.get(page, 0));
        let id = UNLIKE + choices.below(8) as u64;
        (0..pages).for_each(|page| self.new.fill(page, id));
        let (fd, len) = (self.changing.file().as_raw_fd(), pages * PAGE);
        let at = ((self.changing.first + first) * PAGE) as i64;
        if !self.changing.direct {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: takes numbers only.
            check(unsafe { libc::fallocate(fd, mode, at, len as i64) }).context("a hole")?;
        }
        // SAFETY: pages of a mapping.
        let written = check(unsafe { libc::pwrite(fd, self.new.addr() as *const _, len, at) })
            .context("cannot write to a file that changes")?;
        Ok(written as usize == len)
    }
}
