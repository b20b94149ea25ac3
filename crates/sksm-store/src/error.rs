//! What is in the way, and what to do about it.

use core::ffi::CStr;
use core::fmt;

/// Why nothing was shared. The program has its own pages, as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    pub(crate) fault: Fault,
    pub(crate) errno: i32,
}

/// What stood in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The program runs with more rights than who started it.
    Privileged,
    /// The directory's path is too long, or not absolute.
    Path,
    /// The directory cannot be made or opened.
    Directory,
    /// A symbolic link or something else is where the directory should be.
    NotDirectory,
    /// The directory is another user's.
    Owner,
    /// Others may open the directory.
    Mode,
    /// The directory is on no file system in memory.
    FileSystem,
    /// Code may not be mapped from that file system.
    NoExec,
    /// Other threads might write meanwhile.
    Threads,
    /// Pages are locked in memory, and mapped ones would not be.
    Locked,
    /// Code on this machine has protection that mapped pages would lose, or its breakpoints are not known.
    Machine,
    /// Values that must begin at addresses rounder than a page's.
    Alignment,
    /// No such object is loaded.
    NoObject,
    /// The object's file cannot be read, or another has taken its place.
    Replaced,
    /// `SKSM_STORE_LIMIT` is no size.
    LimitUnclear,
    /// It would take more mappings than may be made of an object.
    Mappings,
    /// It would be more than the store may hold.
    Limit,
    /// The file system is full.
    Space,
    /// The user's quota is used up.
    Quota,
    /// The process may not write a file of that size.
    FileSize,
    /// Another process has been publishing the same for too long.
    Busy,
    /// What is stored under that name is something else.
    Damaged,
    /// There is no `/proc` to read.
    Proc,
    /// A call failed that nothing was known to stand against.
    System,
}

impl Error {
    pub(crate) const fn new(fault: Fault, errno: i32) -> Self {
        Error { fault, errno }
    }

    /// What stood in the way.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The error number that the kernel gave, if it was a call that failed.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        (self.errno != 0).then_some(self.errno)
    }
}

impl Fault {
    /// It in words, and what to do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        self.advice_for_c().to_str().unwrap_or_default()
    }

    /// The same for C.
    #[doc(hidden)]
    #[must_use]
    pub fn advice_for_c(self) -> &'static CStr {
        match self {
            Fault::Privileged => {
                c"the program runs with more rights than who started it; it keeps its own pages"
            }
            Fault::Path => {
                c"the store's directory needs an absolute path of at most 200 bytes; see SKSM_STORE_DIR"
            }
            Fault::Directory => {
                c"the store's directory cannot be made or opened; name another by SKSM_STORE_DIR"
            }
            Fault::NotDirectory => {
                c"a link or a file is in the place of the store's directory; remove it, or name another by SKSM_STORE_DIR"
            }
            Fault::Owner => {
                c"the store's directory is another user's; have it removed, or name another by SKSM_STORE_DIR"
            }
            Fault::Mode => {
                c"others may open the store's directory; chmod it to 700, or name another by SKSM_STORE_DIR"
            }
            Fault::FileSystem => {
                c"the store's directory is not in memory; name one on a tmpfs by SKSM_STORE_DIR"
            }
            Fault::NoExec => {
                c"the store's file system is mounted noexec; name one that is not by SKSM_STORE_DIR"
            }
            Fault::Threads => {
                c"the program has several threads, one of which might write; share before they start"
            }
            Fault::Locked => {
                c"the program has locked memory (mlock), which shared pages would not be; share before it does"
            }
            Fault::Machine => {
                c"code on this machine has protection (BTI) that shared pages would lose, or its breakpoints are not known; data can be frozen"
            }
            Fault::Alignment => {
                c"values that must begin at rounder addresses than a page's cannot be frozen"
            }
            Fault::NoObject => c"no such object is loaded, or it has no code that can be shared",
            Fault::Replaced => {
                c"the object's file cannot be read, or another has taken its place; start the program anew"
            }
            Fault::LimitUnclear => {
                c"SKSM_STORE_LIMIT is no size; give a number of bytes, or one with K, M, G or T after it, as in 800M"
            }
            Fault::Mappings => {
                c"what is patched lies too scattered: of one object at most 16 mappings are made, and the rest stays the program's own"
            }
            Fault::Limit => {
                c"the store may not hold so much; raise SKSM_STORE_LIMIT, or end who uses what it holds"
            }
            Fault::Space => {
                c"the store's file system is full; make room there, or name another by SKSM_STORE_DIR"
            }
            Fault::Quota => {
                c"the quota of the store's file system is used up; raise it, or name another by SKSM_STORE_DIR"
            }
            Fault::FileSize => c"the process may not write a file of that size; raise ulimit -f",
            Fault::Busy => {
                c"another process has been publishing the same for too long; is it stopped?"
            }
            Fault::Damaged => {
                c"what the store has under that name is something else; `sksm store clear` removes it"
            }
            Fault::Proc => c"/proc cannot be read; mount it",
            Fault::System => c"a call failed",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fault.advice())?;
        if self.errno == 0 {
            return Ok(());
        }
        #[cfg(feature = "std")]
        return write!(f, " ({})", std::io::Error::from_raw_os_error(self.errno));
        #[cfg(not(feature = "std"))]
        write!(f, " (error number {})", self.errno)
    }
}

impl core::error::Error for Error {}
