//! The contents of another process's pages, read with hardly a trace.
//!
//! `/proc/PID/mem` copies every byte twice. `process_vm_readv(2)` copies once, but it pins what it reads, and before a page
//! is pinned the kernel ends its sharing: it would take merged pages apart, and copy those that are shared since a fork.
//! So it is for pages that are this process's alone.
//!
//! What is left behind: the kernel takes the pages for recently used, and a process that was ever pinned copies such pages
//! at its next fork if they are pinned just then, instead of sharing them until they are written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::pagemap::Entry;
use super::sample;

pub struct Memory {
    pid: u32,
    file: File,
}

/// A page's address, and what the page table says of it.
pub type Place = (u64, Entry);

impl Memory {
    /// Fails for those who may not read it.
    pub fn open(pid: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/mem"))?;
        Ok(Memory { pid, file })
    }

    /// Reads these pages one after the other; tells how many came before one that cannot be read.
    pub fn read(&self, places: &[Place], merged: bool, room: &mut [u8]) -> usize {
        let page = sksm::page_size();
        let mut done = 0;
        // Pages of one kind at a time.
        for part in places.chunk_by(|a, b| alone(a, merged) == alone(b, merged)) {
            let Some(room) = room.get_mut(done * page..(done + part.len()) * page) else {
                return done;
            };
            let pinned = part.first().is_some_and(|first| alone(first, merged));
            let read = if pinned {
                self.at_once(part, room)
                    .unwrap_or_else(|| self.by_file(part, room))
            } else {
                self.by_file(part, room)
            };
            done += read;
            if read < part.len() {
                return done;
            }
        }
        done
    }

    /// Samples these pages, which must be this process's alone, one after the other; tells how many came before one that cannot
    /// be read. None where this call is refused.
    pub fn sample(&self, addrs: impl Iterator<Item = u64>, room: &mut [u8]) -> Option<usize> {
        let there: Vec<libc::iovec> = addrs
            .map(|addr| remote(sample::place(addr), sample::LEN))
            .collect();
        match self.copy(&there, room) {
            Ok(read) => Some(read / sample::LEN),
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Some(0),
            Err(_) => None,
        }
    }

    /// Samples one page, whoever has it, and ends no sharing; false where it cannot be read.
    pub fn sample_shared(&self, addr: u64, room: &mut [u8; sample::LEN]) -> bool {
        self.file.read_exact_at(room, sample::place(addr)).is_ok()
    }

    fn by_file(&self, places: &[Place], room: &mut [u8]) -> usize {
        let page = sksm::page_size();
        let mut done = 0;
        for run in places.chunk_by(|a, b| a.0 + page as u64 == b.0) {
            let Some(room) = room.get_mut(done * page..(done + run.len()) * page) else {
                return done;
            };
            let start = run.first().map_or(0, |(addr, _)| *addr);
            let read = self.file.read_at(room, start).unwrap_or(0) / page;
            done += read;
            if read < run.len() {
                return done;
            }
        }
        done
    }

    /// None where this call is refused: a filter may forbid it, or the kernel be built without it.
    fn at_once(&self, places: &[Place], room: &mut [u8]) -> Option<usize> {
        let page = sksm::page_size();
        let there: Vec<libc::iovec> = places
            .chunk_by(|a, b| a.0 + page as u64 == b.0)
            .map(|run| remote(run.first().map_or(0, |(addr, _)| *addr), run.len() * page))
            .collect();
        Some(self.copy(&there, room).ok()? / page)
    }

    /// Copies these ranges one after the other, up to the first that cannot be read; tells how many bytes that is.
    fn copy(&self, there: &[libc::iovec], room: &mut [u8]) -> io::Result<usize> {
        let here = libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len(),
        };
        // SAFETY: writes the room alone; the other addresses are not this process's.
        let read = unsafe {
            libc::process_vm_readv(
                self.pid as i32,
                &here,
                1,
                there.as_ptr(),
                there.len() as libc::c_ulong,
                0,
            )
        };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

fn remote(addr: u64, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: addr as *mut libc::c_void,
        iov_len: len,
    }
}

/// Whether pinning this page ends no sharing. A fork in between costs the process one copy of it.
pub fn alone(place: &Place, merged: bool) -> bool {
    place.1.exclusive() && !merged
}
