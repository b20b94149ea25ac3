//! The twin filter of programs that look at their own memory each.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// A counter for each of so many places: 4 MiB, of which the part is memory that is written.
const PLACES: usize = 4 << 20;
/// More than one is as good as many.
const MOST: u8 = 2;
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// How many programs of one merge domain have each sample, roughly: none, one, or more.
///
/// It is a memfd of fixed size that all of them may write. So each of them can have the others see a twin that there is not, or miss one
/// that there is, and no more: a wrong twin costs a publication, and the kernel compares what it merges. Nothing is ever taken out;
/// whoever hands it out begins a new one from time to time, and those who are still there add their samples again.
pub struct SharedFilter {
    file: File,
    counters: NonNull<AtomicU8>,
}

// SAFETY: all that is behind the pointer are atomic counters, mapped as long as this is there.
unsafe impl Send for SharedFilter {}
// SAFETY: as above.
unsafe impl Sync for SharedFilter {}

impl SharedFilter {
    /// So many places it has.
    pub(crate) const PLACES: usize = PLACES;

    /// Where a sample counts.
    pub(crate) fn place(sample: u32) -> usize {
        sample as usize & (PLACES - 1)
    }

    /// A new one, with nothing in it.
    ///
    /// # Errors
    ///
    /// Where the kernel has no memfd, or no room for one.
    pub fn create() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("sksm-twins", flags)?);
        file.set_len(PLACES as u64)?;
        rustix::fs::fcntl_add_seals(&file, SEALS)?;
        Self::map(file)
    }

    /// Takes up one that was handed out.
    fn of(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        // Memory that could shrink would be the end of this process.
        let sealed = rustix::fs::fcntl_get_seals(&file)?.contains(SEALS);
        if !sealed || file.metadata()?.len() != PLACES as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "what was handed out is no filter of this version",
            ));
        }
        Self::map(file)
    }

    fn map(file: File) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, where nothing else is.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                PLACES,
                access,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let counters = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(SharedFilter { file, counters })
    }

    /// Whether both are one.
    ///
    /// # Errors
    ///
    /// Where the kernel does not tell.
    pub fn same(&self, other: &Self) -> io::Result<bool> {
        let (one, other) = (self.file.metadata()?, other.file.metadata()?);
        Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
    }

    /// A page with this sample has come. Each program adds each of its pages once.
    pub fn add(&self, sample: u32) {
        let counter = self.counter(sample);
        let count = counter.load(Ordering::Relaxed);
        if count < MOST {
            // Of two that come at once, none is lost; more than the most is no harm.
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there may be two pages of this sample.
    #[must_use]
    pub fn twice(&self, sample: u32) -> bool {
        self.counter(sample).load(Ordering::Relaxed) >= MOST
    }

    fn counter(&self, sample: u32) -> &AtomicU8 {
        let place = Self::place(sample);
        // SAFETY: within the mapping, which lasts as long as this does; others change it by atomic operations, or are other processes.
        unsafe { self.counters.add(place).as_ref() }
    }

    /// Hands it out to the process at the other end.
    ///
    /// # Errors
    ///
    /// Where that has gone, or does not listen.
    pub fn send(&self, to: &UnixStream) -> io::Result<()> {
        let fds = [self.file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        with.push(SendAncillaryMessage::ScmRights(&fds));
        // Something has to go with it.
        rustix::net::sendmsg(to, &[IoSlice::new(b"1")], &mut with, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes what the process at the other end hands out.
    ///
    /// # Errors
    ///
    /// Where it hands out nothing, or something else.
    pub fn receive(from: &UnixStream) -> io::Result<Self> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let mut room = [0; 1];
        let mut parts = [IoSliceMut::new(&mut room)];
        rustix::net::recvmsg(from, &mut parts, &mut with, RecvFlags::CMSG_CLOEXEC)?;
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                if let Some(fd) = fds.next() {
                    return Self::of(fd);
                }
            }
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it was handed none: this process is in no merge domain, or there are too many",
        ))
    }
}

impl Drop for SharedFilter {
    fn drop(&mut self) {
        // SAFETY: mapped by this, and nobody has a reference to it any more.
        let gone = unsafe { rustix::mm::munmap(self.counters.as_ptr().cast(), PLACES) };
        debug_assert!(gone.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_have_is_there_twice() {
        let filter = SharedFilter::create().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        filter.send(&here).unwrap();
        let other = SharedFilter::receive(&there).unwrap();
        assert!(filter.same(&other).unwrap());
        assert!(!filter.same(&SharedFilter::create().unwrap()).unwrap());
        filter.add(7);
        assert!(!filter.twice(7) && !other.twice(7));
        other.add(7);
        assert!(filter.twice(7) && other.twice(7) && !other.twice(8));
        (0..1000).for_each(|_| other.add(7));
        assert!(filter.twice(7));
    }

    #[test]
    fn what_could_shrink_is_refused() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = File::from(rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(PLACES as u64).unwrap();
        let refused = SharedFilter::of(OwnedFd::from(file));
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::InvalidData);
        drop(here);
        let refused = SharedFilter::receive(&there).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
