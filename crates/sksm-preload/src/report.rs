use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

/// One line, built on the stack and sent by one write: short enough that a pipe takes it whole, whoever else writes.
pub struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Line {
            bytes: [0; 256],
            len: 0,
        }
    }
}

impl Line {
    /// Appends; what no longer fits is left out.
    pub fn text(&mut self, text: &[u8]) -> &mut Self {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
        self
    }

    /// Appends what others have written: its start, without what steers a terminal.
    pub fn quoted(&mut self, text: &[u8]) -> &mut Self {
        for byte in text.iter().take(40) {
            let plain = matches!(byte, b' '..=b'~');
            self.text(if plain {
                core::slice::from_ref(byte)
            } else {
                b"?"
            });
        }
        self
    }

    /// Appends in decimal. Not by core::fmt, whose tables would cost every process relocated pages.
    pub fn number(&mut self, number: u64) -> &mut Self {
        if number >= 10 {
            self.number(number / 10);
        }
        self.text(&[b'0' + (number % 10) as u8])
    }

    /// Sends the line and closes the descriptor: the program shall not inherit it.
    #[cfg(feature = "experiment")]
    pub fn send(&mut self, fd: c_int) {
        let bytes = self.ended();
        // SAFETY: the bytes are there to be read; a descriptor that is none is an error without effect.
        unsafe {
            libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            libc::close(fd);
        }
    }

    /// A line that was cut still ends in one.
    fn ended(&mut self) -> &[u8] {
        self.len = self.len.min(self.bytes.len() - 1);
        self.text(b"\n");
        &self.bytes[..self.len]
    }
}

/// Writes what a pipe takes whole, if it can be written now: whoever reads may be slow, or have gone, and the program shall neither
/// wait nor die for a line of ours.
fn write(fd: c_int, bytes: &[u8]) {
    let mut ready = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure, ours.
    let count = unsafe { libc::poll(&mut ready, 1, 0) };
    if count != 1 || ready.revents != libc::POLLOUT {
        return;
    }
    // The reader may go even now.
    let mut pipe = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    let mut pending = MaybeUninit::uninit();
    // SAFETY: all three sets are written before they are read, the bytes are there to be read, and a signal that this thread
    // has raised for itself, and blocks, is taken back.
    unsafe {
        libc::sigemptyset(pipe.as_mut_ptr());
        libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
        libc::sigprocmask(libc::SIG_BLOCK, pipe.as_ptr(), before.as_mut_ptr());
        libc::sigpending(pending.as_mut_ptr());
        let others = libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1;
        if libc::write(fd, bytes.as_ptr().cast(), bytes.len()) < 0 && !others {
            let now = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            libc::sigtimedwait(pipe.as_ptr(), core::ptr::null_mut(), &now);
        }
        libc::sigprocmask(libc::SIG_SETMASK, before.as_ptr(), core::ptr::null_mut());
    }
}

/// Standard error as it was before `main`: a program may close it, and get its number for a file of its own.
pub struct StandardError {
    device: AtomicU64,
    inode: AtomicU64,
}

impl StandardError {
    pub const fn unknown() -> Self {
        StandardError {
            device: AtomicU64::new(0),
            inode: AtomicU64::new(0),
        }
    }

    /// Remembers what it is now.
    pub fn remember(&self) {
        if let Some((device, inode)) = file(libc::STDERR_FILENO) {
            self.device.store(device, Ordering::Relaxed);
            self.inode.store(inode, Ordering::Relaxed);
        }
    }

    /// Sends the line if it is still the same.
    pub fn write(&self, line: &mut Line) {
        let known = (
            self.device.load(Ordering::Relaxed),
            self.inode.load(Ordering::Relaxed),
        );
        if file(libc::STDERR_FILENO) == Some(known) {
            write(libc::STDERR_FILENO, line.ended());
        }
    }
}

/// Which file a descriptor is of: its device and its number there.
fn file(fd: c_int) -> Option<(u64, u64)> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // The call itself: libc's function has another name before glibc 2.33.
    // SAFETY: writes one structure, into ours, which has the kernel's layout on 64-bit machines.
    let result = unsafe { libc::syscall(libc::SYS_fstat, fd, stat.as_mut_ptr()) };
    // SAFETY: written if the call succeeded.
    (result == 0).then(|| unsafe {
        let stat = stat.assume_init_ref();
        (stat.st_dev, stat.st_ino)
    })
}

/// A descriptor in decimal; the standard ones are the program's, not ours to write to.
#[cfg(any(feature = "experiment", test))]
pub fn report_fd(value: &[u8]) -> Option<c_int> {
    let mut fd: c_int = 0;
    for byte in value {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        fd = fd.checked_mul(10)?.checked_add(c_int::from(digit))?;
    }
    (fd > 2).then_some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(build: impl Fn(&mut Line)) -> String {
        let mut line = Line::default();
        build(&mut line);
        String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 99, 100, 1_234_567, u64::MAX] {
            assert_eq!(written(|line| _ = line.number(number)), number.to_string());
        }
    }

    #[test]
    fn too_long_a_line_is_cut() {
        assert_eq!(written(|line| _ = line.text(&[b'x'; 500])).len(), 256);
    }

    #[test]
    fn descriptors_of_one_file_are_the_same() {
        let file = |fd: &dyn std::os::fd::AsRawFd| super::file(fd.as_raw_fd());
        let [one, other] = [(); 2].map(|()| tempfile());
        assert!(file(&one).is_some());
        assert_eq!(file(&one), file(&one.try_clone().unwrap()));
        assert_ne!(file(&one), file(&other));
        assert_eq!(super::file(-1), None);
    }

    /// A new file without a name.
    fn tempfile() -> std::fs::File {
        use std::os::fd::FromRawFd;
        // SAFETY: a name that ends in a nul byte; the descriptor is new, and owned here alone.
        unsafe {
            let fd = libc::memfd_create(c"test".as_ptr(), 0);
            assert!(fd >= 0);
            std::fs::File::from_raw_fd(fd)
        }
    }

    #[test]
    fn only_other_descriptors_are_reported_to() {
        assert_eq!(report_fd(b"17"), Some(17));
        for bad in [b"".as_slice(), b"1", b"2", b"-3", b"3x", b"99999999999"] {
            assert_eq!(report_fd(bad), None);
        }
    }
}
