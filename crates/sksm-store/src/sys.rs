//! The calls that are made, each as safe as it can be. Nothing here allocates.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::mem::zeroed;

/// An error number.
pub type Errno = c_int;

pub fn errno() -> Errno {
    // SAFETY: errno's location is valid for this thread.
    unsafe { *libc::__errno_location() }
}

/// A descriptor that is closed with it.
#[derive(Debug)]
pub struct Fd(c_int);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: owned by this value alone.
        unsafe { libc::close(self.0) };
    }
}

/// Again for as long as a signal interrupts it.
fn again(mut call: impl FnMut() -> isize) -> Result<usize, Errno> {
    loop {
        if let Ok(done) = usize::try_from(call()) {
            return Ok(done);
        }
        match errno() {
            libc::EINTR => {}
            other => return Err(other),
        }
    }
}

pub fn open(path: &CStr, flags: c_int) -> Result<Fd, Errno> {
    open_at(None, path, flags, 0)
}

pub fn open_at(dir: Option<&Fd>, path: &CStr, flags: c_int, mode: u32) -> Result<Fd, Errno> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.0);
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: a path that ends in a nul byte.
    let fd = again(|| unsafe { libc::openat(dir, path.as_ptr(), flags, mode) } as isize)?;
    c_int::try_from(fd).map(Fd).map_err(|_| libc::EBADF)
}

/// The kernel's call, where its structure is that of libc: the function has its name only since glibc 2.33, and programs bring older
/// ones.
#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
unsafe fn fstatat(dir: c_int, name: *const c_char, stat: *mut libc::stat, flags: c_int) -> c_long {
    // SAFETY: as the caller says.
    unsafe { libc::syscall(libc::SYS_newfstatat, dir, name, stat, flags) }
}

#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
use libc::fstatat;

impl Fd {
    pub fn stat(&self) -> Result<libc::stat, Errno> {
        self.stat_of(c"", libc::AT_EMPTY_PATH)
    }

    pub fn stat_at(&self, name: &CStr) -> Result<libc::stat, Errno> {
        self.stat_of(name, libc::AT_SYMLINK_NOFOLLOW)
    }

    fn stat_of(&self, name: &CStr, flags: c_int) -> Result<libc::stat, Errno> {
        // SAFETY: numbers, for all of which zero is a value.
        let mut stat: libc::stat = unsafe { zeroed() };
        // SAFETY: a path that ends in a nul byte; writes one stat, into ours.
        again(|| unsafe { fstatat(self.0, name.as_ptr(), &mut stat, flags) } as isize)?;
        Ok(stat)
    }

    pub fn file_system(&self) -> Result<(libc::statfs, libc::statvfs), Errno> {
        // SAFETY: numbers, for all of which zero is a value.
        let (mut of, mut vfs) = unsafe { (zeroed(), zeroed()) };
        // SAFETY: each writes one of its kind, into ours.
        again(|| unsafe { libc::fstatfs(self.0, &mut of) } as isize)?;
        // SAFETY: as above.
        again(|| unsafe { libc::fstatvfs(self.0, &mut vfs) } as isize)?;
        Ok((of, vfs))
    }

    /// Reads until the buffer is full or the file ends; tells how much.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = (offset + done as u64) as i64;
            // SAFETY: the rest is valid for writes of its length.
            let count =
                again(|| unsafe { libc::pread(self.0, rest.as_mut_ptr().cast(), rest.len(), at) })?;
            if count == 0 {
                break;
            }
            done += count;
        }
        Ok(done)
    }

    pub fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
        while !bytes.is_empty() {
            // SAFETY: the bytes are valid for reads of their length.
            let count = again(|| unsafe {
                libc::pwrite(self.0, bytes.as_ptr().cast(), bytes.len(), offset as i64)
            })?;
            if count == 0 {
                return Err(libc::EIO);
            }
            bytes = bytes.get(count..).unwrap_or_default();
            offset += count as u64;
        }
        Ok(())
    }

    pub fn set_len(&self, len: u64) -> Result<(), Errno> {
        // SAFETY: takes numbers only.
        again(|| unsafe { libc::ftruncate(self.0, len as i64) } as isize).map(drop)
    }

    pub fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        // SAFETY: takes numbers only.
        again(|| unsafe { libc::fchmod(self.0, mode) } as isize).map(drop)
    }

    /// Where data begins, or a hole, from there on; none past the last.
    pub fn seek(&self, offset: u64, whence: c_int) -> Option<u64> {
        // SAFETY: takes numbers only.
        u64::try_from(unsafe { libc::lseek(self.0, offset as i64, whence) }).ok()
    }

    /// Gives a file without a name one, unless something has it.
    pub fn link(&self, dir: &Fd, name: &CStr) -> Result<(), Errno> {
        let mut path = [0; 32];
        let path = proc_fd(self.0, &mut path);
        let flags = libc::AT_SYMLINK_FOLLOW;
        // SAFETY: paths that end in a nul byte.
        let link =
            || unsafe { libc::linkat(libc::AT_FDCWD, path.as_ptr(), dir.0, name.as_ptr(), flags) };
        again(|| link() as isize).map(drop)
    }

    pub fn unlink(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: a path that ends in a nul byte.
        again(|| unsafe { libc::unlinkat(self.0, name.as_ptr(), 0) } as isize).map(drop)
    }

    /// A lock of this process alone on one byte, which no child inherits; whether nobody else has it.
    pub fn try_lock(&self, byte: u64) -> Result<bool, Errno> {
        match self.record_lock(libc::F_WRLCK, byte) {
            Ok(()) => Ok(true),
            Err(libc::EAGAIN | libc::EACCES) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    pub fn unlock(&self, byte: u64) {
        self.record_lock(libc::F_UNLCK, byte).ok();
    }

    fn record_lock(&self, kind: c_int, byte: u64) -> Result<(), Errno> {
        // SAFETY: numbers, for all of which zero is a value.
        let mut lock: libc::flock = unsafe { zeroed() };
        lock.l_type = kind as _;
        lock.l_whence = libc::SEEK_SET as _;
        lock.l_start = (byte & (i64::MAX as u64 >> 1)) as _;
        lock.l_len = 1;
        // SAFETY: reads one lock, ours.
        again(|| unsafe { libc::fcntl(self.0, libc::F_SETLK, &lock) } as isize).map(drop)
    }

    /// Takes the lease that the kernel gives only for a file that nobody else has open or mapped. Whoever opens it then waits, or is
    /// told to come again; the signal that this process gets for it is one that programs ignore unless they ask for it.
    pub fn lease(&self) -> bool {
        /// Which libc lacks.
        const F_SETSIG: c_int = 10;
        // SAFETY: takes numbers only.
        unsafe {
            libc::fcntl(self.0, F_SETSIG, libc::SIGURG) == 0
                && libc::fcntl(self.0, libc::F_SETLEASE, libc::F_WRLCK) == 0
        }
    }

    pub fn end_lease(&self) {
        // SAFETY: takes numbers only.
        unsafe { libc::fcntl(self.0, libc::F_SETLEASE, libc::F_UNLCK) };
    }

    /// Shows each name in a directory until `see` returns false. The names may change meanwhile.
    pub fn each_name(&self, mut see: impl FnMut(&CStr) -> bool) -> Result<(), Errno> {
        // The place in a directory belongs to the descriptor.
        let dir = open_at(Some(self), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let mut buffer = Aligned([0; 2048]);
        const NAME: usize = 19;
        loop {
            let room = &mut buffer.0;
            // SAFETY: the room is valid for writes of its length.
            let count = again(|| unsafe {
                libc::syscall(libc::SYS_getdents64, dir.0, room.as_mut_ptr(), room.len())
            } as isize)?;
            let mut rest = buffer.0.get(..count).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            while let Some(&[low, high]) = rest.get(16..18) {
                let len = usize::from(u16::from_ne_bytes([low, high]));
                let entry = rest.get(NAME..len).unwrap_or_default();
                if let Ok(name) = CStr::from_bytes_until_nul(entry) {
                    if !name.to_bytes().starts_with(b".") && !see(name) {
                        return Ok(());
                    }
                }
                rest = rest.get(len.max(1)..).unwrap_or_default();
            }
        }
    }
}

#[repr(align(8))]
struct Aligned([u8; 2048]);

/// The digits of a number.
pub fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (number % 10) as u8;
        }
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits.get(at..).unwrap_or_default()
}

fn proc_fd(fd: c_int, room: &mut [u8; 32]) -> &CStr {
    let prefix = b"/proc/self/fd/";
    let mut digits = [0; 10];
    let text = (prefix.iter()).chain(decimal(fd.unsigned_abs(), &mut digits));
    for (place, byte) in room.iter_mut().zip(text) {
        *place = *byte;
    }
    CStr::from_bytes_until_nul(room).unwrap_or_default()
}

/// Memory that is unmapped with it.
#[derive(Debug)]
pub struct Map {
    start: *mut u8,
    len: usize,
}

// SAFETY: memory that belongs to this value, like that of a Vec.
unsafe impl Send for Map {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Map {}

impl Map {
    /// Zeros that may be written.
    pub fn scratch(len: usize) -> Result<Self, Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    pub fn file(fd: &Fd, len: usize, protection: c_int, offset: u64) -> Result<Self, Errno> {
        Self::new(len, protection, libc::MAP_PRIVATE, fd.0, offset)
    }

    fn new(len: usize, protection: c_int, flags: c_int, fd: c_int, at: u64) -> Result<Self, Errno> {
        // SAFETY: a new mapping, placed by the kernel.
        let start =
            unsafe { libc::mmap(core::ptr::null_mut(), len, protection, flags, fd, at as i64) };
        if start == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(Map {
            start: start.cast(),
            len,
        })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for as long as this value lives, and written through `bytes_mut` alone.
        unsafe { core::slice::from_raw_parts(self.start, self.len) }
    }

    /// Of scratch memory only.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped writable by `scratch`, and borrowed from nowhere else.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this value's own, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Puts pages of a file in the place of others, at once for all threads.
///
/// # Safety
/// The pages there have the same bytes, nobody writes them meanwhile, and whoever uses them can do with this protection.
pub unsafe fn map_over(
    start: usize,
    len: usize,
    protection: c_int,
    fd: &Fd,
    offset: u64,
) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    // SAFETY: as the caller says.
    let mapped = unsafe {
        libc::mmap(
            start as *mut c_void,
            len,
            protection,
            flags,
            fd.0,
            offset as i64,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(errno());
    }
    Ok(())
}

/// No signal handler of this thread runs for as long as it lives.
pub struct NoSignals(u64);

/// All signals, but for the two that libc has for itself.
const ALL: u64 = !(1 << 31 | 1 << 32);

impl NoSignals {
    pub fn now() -> Self {
        NoSignals(set_blocked(ALL))
    }
}

impl Drop for NoSignals {
    fn drop(&mut self) {
        set_blocked(self.0);
    }
}

/// Blocks these signals and no others; returns which were. The kernel's call: `pthread_sigmask` is in another library before glibc 2.32.
fn set_blocked(signals: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: reads one set and writes one, both ours and of this size.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &signals,
            &mut before,
            size_of::<u64>(),
        )
    };
    before
}

pub fn wait(milliseconds: i64) {
    let time = libc::timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: (milliseconds % 1000 * 1_000_000) as _,
    };
    // SAFETY: reads one time, ours.
    unsafe { libc::nanosleep(&time, core::ptr::null_mut()) };
}

/// How large a file this process may write. For a larger one the kernel would end it (SIGXFSZ).
pub fn file_size_limit() -> u64 {
    // SAFETY: numbers, for all of which zero is a value.
    let mut limit: libc::rlimit = unsafe { zeroed() };
    // SAFETY: writes one limit, into ours.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// Whether code may be protected against jumps into its middle (`PROT_BTI` of aarch64), which only smaps would tell.
pub fn has_branch_targets() -> bool {
    const HWCAP2_BTI: libc::c_ulong = 1 << 17;
    // SAFETY: reads what the kernel left at the start.
    cfg!(target_arch = "aarch64") && unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_BTI != 0
}

/// The machine's memory in bytes.
pub fn memory() -> u64 {
    // SAFETY: numbers, for all of which zero is a value.
    let mut info: libc::sysinfo = unsafe { zeroed() };
    // SAFETY: writes one of them, into ours.
    match unsafe { libc::sysinfo(&mut info) } {
        0 => info.totalram as u64 * u64::from(info.mem_unit),
        _ => 0,
    }
}

/// The numbers of a line in `/proc/self/status`, which is read without allocating.
pub fn status(name: &[u8]) -> Result<u64, Errno> {
    let file = open(c"/proc/self/status", libc::O_RDONLY)?;
    let mut text = [0; 1024];
    let mut at = 0;
    let mut line = Line::new(name);
    // The groups alone may fill many pages.
    loop {
        let len = file.read_at(&mut text, at)?;
        let read = text.get(..len).unwrap_or_default();
        if let Some(number) = read.iter().find_map(|byte| line.see(*byte)) {
            return Ok(number);
        }
        if len == 0 {
            return Err(libc::ENOENT);
        }
        at += len as u64;
    }
}

/// The numbers of a line that begins so, found byte by byte; of one that is cut off there are none.
struct Line<'a> {
    name: &'a [u8],
    /// So much of the name has been seen, if the line may be it.
    matched: Option<usize>,
    number: u64,
}

impl<'a> Line<'a> {
    fn new(name: &'a [u8]) -> Self {
        Line {
            name,
            matched: Some(0),
            number: 0,
        }
    }

    fn see(&mut self, byte: u8) -> Option<u64> {
        let whole = self.matched == Some(self.name.len());
        match (byte, self.matched) {
            (b'\n', _) if whole => return Some(self.number),
            (b'\n', _) => self.matched = Some(0),
            (_, Some(_)) if whole => {
                if byte.is_ascii_digit() {
                    self.number = self.number.saturating_mul(10) + u64::from(byte - b'0');
                }
            }
            (_, Some(matched)) if self.name.get(matched) == Some(&byte) => {
                self.matched = Some(matched + 1);
            }
            _ => self.matched = None,
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whole_or_not() {
        let read = |text: &str, name: &str| {
            let mut line = Line::new(name.as_bytes());
            text.bytes().find_map(|byte| line.see(byte))
        };
        let status = "Name:\tThreads: 7\nGroups:\t1 2 3\nVmLck:\t     123 kB\nThreads:\t12\n";
        assert_eq!(read(status, "Threads:"), Some(12));
        assert_eq!(read(status, "VmLck:"), Some(123));
        assert_eq!(read(status, "Thr:"), None);
        for end in 0..status.len() {
            let cut = status.get(..end).unwrap_or_default();
            assert_eq!(read(cut, "Threads:"), None, "{cut:?}");
        }
        assert_eq!(status_of_threads(), 1);
    }

    /// In a child, as the harness has several.
    fn status_of_threads() -> u64 {
        // SAFETY: the child makes simple calls and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let threads = status(b"Threads:").unwrap_or(0);
            // SAFETY: ends the child.
            unsafe { libc::_exit(threads as c_int) };
        }
        let mut status = 0;
        // SAFETY: our own child; writes a status, into ours.
        unsafe { libc::waitpid(child, &mut status, 0) };
        libc::WEXITSTATUS(status) as u64
    }
}
