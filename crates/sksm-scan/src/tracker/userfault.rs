use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use sksm::Region;

use super::Unsupported;

/// The kernel notes the first write to each page of some ranges after the page was write-protected, and lets it through: nobody waits
/// for it, and nobody is told. Dropped, the kernel takes the protection away and notes nothing any more.
pub struct Userfault(OwnedFd);

// From linux/userfaultfd.h.
const USER_MODE_ONLY: libc::c_int = 1;
const API: u64 = 0xaa;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const IOCTL_API: libc::c_ulong = 0xc018_aa3f;
const IOCTL_REGISTER: libc::c_ulong = 0xc020_aa00;
const IOCTL_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const REGISTER_WP: u64 = 2;

impl Userfault {
    /// One with no memory yet.
    pub fn open() -> Result<Self, Unsupported> {
        // Faults of the kernel's own are no matter, as nobody handles any; so it needs no rights.
        let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(Unsupported::Userfaultfd(io::Error::last_os_error()));
        }
        // SAFETY: a new descriptor that nothing else owns.
        let userfault = Userfault(unsafe { OwnedFd::from_raw_fd(fd) });
        userfault
            .call(IOCTL_API, &mut [API, FEATURE_WP_ASYNC, 0])
            .map_err(Unsupported::Userfaultfd)?;
        Ok(userfault)
    }

    /// Takes up a range of addresses.
    pub fn register(&self, region: Region) -> Result<(), Unsupported> {
        let mut words = [region.start as u64, region.len as u64, REGISTER_WP, 0];
        self.call(IOCTL_REGISTER, &mut words)
            .map_err(|error| Unsupported::Registering(region, error))
    }

    /// Gives all of it up. Closing alone would not, where a child has the descriptor as well.
    pub fn release(self, regions: impl Iterator<Item = Region>) {
        for region in regions {
            // What is not registered any more needs nothing.
            _ = self.call(
                IOCTL_UNREGISTER,
                &mut [region.start as u64, region.len as u64],
            );
        }
    }

    fn call<const WORDS: usize>(
        &self,
        request: libc::c_ulong,
        words: &mut [u64; WORDS],
    ) -> io::Result<()> {
        debug_assert_eq!(request as usize >> 16 & 0x3fff, WORDS * 8);
        // SAFETY: there are as many words as the request takes, and it changes no contents of memory.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, words.as_mut_ptr()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
