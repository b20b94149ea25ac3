//! Pages that the process has given to somebody else: a pipe, or an io_uring. They stay held over other operations.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use crate::memory::content::content;
use crate::memory::pagemap::{Flags, Pagemap};
use crate::memory::process::pipe;
use crate::page::{PAGE, WORDS};
use crate::syscall::check;
use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};

use super::arena::Arena;
use super::shadow::CONTENTS;

/// Words are written with a content, or with a number below this.
pub const PATCH_VALUES: u64 = 3;

/// Pages in a pipe.
pub struct Splice {
    out: File,
    pages: Vec<Spliced>,
}

struct Spliced {
    before: [u64; WORDS],
    /// Whether its owner has written since.
    written: Rc<Cell<bool>>,
    /// It was a merged page, which nobody writes as long as the pipe has it.
    merged: bool,
}

impl Splice {
    pub fn of(arena: &mut Arena, pages: Range<usize>) -> Result<Self> {
        let (out, into) = pipe()?;
        let (addr, len) = Arena::bytes(&pages);
        let part = libc::iovec {
            iov_base: addr as *mut _,
            iov_len: len,
        };
        // SAFETY: mapped pages of the arena; the pipe keeps what it refers to.
        let spliced = check(unsafe { libc::vmsplice(into.as_raw_fd(), &part, 1, 0) })?;
        ensure!(
            spliced as usize == len,
            "{spliced} bytes went into the pipe"
        );
        // The pipe keeps pages from becoming merged ones: what is one now was one then.
        let entries = Pagemap::own()?.entries(addr, pages.len())?;
        let pages = pages.zip(entries).map(|(page, entry)| {
            let (before, written) = arena.watch(page);
            let merged = match entry.pfn() {
                Some(pfn) => Flags::of(pfn)?.ksm(),
                None => false,
            };
            Ok(Spliced {
                before,
                written,
                merged,
            })
        });
        let pages = pages.collect::<Result<_>>()?;
        Ok(Self { out, pages })
    }

    /// How many of them were merged pages.
    pub fn merged(&self) -> usize {
        self.pages.iter().filter(|page| page.merged).count()
    }

    /// A device may have written to these pages by another way than the arena's.
    pub fn written_elsewhere(&self) {
        self.pages.iter().for_each(|page| page.written.set(true));
    }

    /// What the pipe gives: the pages as they were. Of one that was not merged, writes of its owner may show too.
    pub fn check(mut self) -> Result<()> {
        let mut bytes = vec![0; self.pages.len() * PAGE];
        self.out.read_exact(&mut bytes)?;
        let pages = bytes.chunks_exact(PAGE).zip(&self.pages);
        for (number, (bytes, page)) in pages.enumerate() {
            let may_differ = !page.merged && page.written.get();
            for (word, bytes) in bytes.chunks_exact(8).enumerate() {
                let found = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
                let before = page.before[word];
                ensure!(
                    found == before || may_differ && possible(found, word),
                    "page {number} in the pipe, word {word}: expected {before:#x}, got {found:#x}; merged: {}, written \
                     since: {}",
                    page.merged,
                    page.written.get()
                );
            }
        }
        Ok(())
    }
}

/// Whether a page may ever hold this word.
fn possible(found: u64, word: usize) -> bool {
    found < PATCH_VALUES || (0..CONTENTS).any(|id| content(id, word) == found)
}

/// An io_uring with pages registered as its buffer.
pub struct Ring {
    ring: IoUring,
    addr: usize,
    pages: usize,
}

impl Ring {
    /// None if a page cannot be pinned for long: it is in movable memory, and somebody else's reference keeps it there.
    pub fn of(arena: &mut Arena, pages: Range<usize>) -> Result<Option<Self>> {
        let ring = IoUring::new(2).context("io_uring")?;
        let (addr, len) = Arena::bytes(&pages);
        let buffer = libc::iovec {
            iov_base: addr as *mut _,
            iov_len: len,
        };
        // SAFETY: the kernel keeps the pages whatever becomes of the mapping; what it writes to them, the shadow follows.
        match unsafe { ring.submitter().register_buffers(&[buffer]) } {
            Ok(()) => {}
            // Or EFAULT: what io_uring makes of it if the pages before that one were pinned already.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EFAULT)) => {
                arena.register(0..0);
                return Ok(None);
            }
            Err(error) => return Err(error).context("register_buffers"),
        }
        let count = pages.len();
        arena.register(pages);
        Ok(Some(Self {
            ring,
            addr,
            pages: count,
        }))
    }

    /// The device writes its pages from `from` on to the buffer, which `meanwhile` may look at, not write.
    pub fn read(
        &mut self,
        disk: &File,
        from: usize,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let len = self.pages * PAGE;
        let read = opcode::ReadFixed::new(
            types::Fd(disk.as_raw_fd()),
            self.addr as *mut u8,
            len as u32,
            0,
        )
        .offset((from * PAGE) as u64);
        // SAFETY: into the registered buffer.
        unsafe { self.ring.submission().push(&read.build()) }?;
        self.ring.submit()?;
        let result = meanwhile();
        self.ring.submit_and_wait(1)?;
        let done = self.ring.completion().next().context("no completion")?;
        ensure!(done.result() == len as i32, "ring read: {}", done.result());
        result
    }

    /// In a forked child: its parent's ring is not mapped here.
    pub fn abandon(self) {
        // SAFETY: the descriptor is not used again, as `self` is forgotten.
        unsafe { libc::close(self.ring.as_raw_fd()) };
        std::mem::forget(self);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A forked child may have the descriptor open still.
        self.ring.submitter().unregister_buffers().ok();
    }
}
