//! Seccomp filters: whether there is one, and what it does to a call.

use core::ffi::c_int;

/// How a call ended in a child of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It came back, with whatever result.
    Survived,
    /// The child was ended for it.
    Killed,
    /// There is no child to be had.
    NoChild,
}

/// Calls this in a child, which a filter may kill.
pub fn try_in_child(call: impl FnOnce()) -> Tried {
    // A plain copy of the process, of which nobody is told: the program's fork handlers and SIGCHLD are none of its business.
    // SAFETY: a fork; the child makes only calls that are allowed after one.
    let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    if child == 0 {
        // Its end is no crash of the program's that is worth a dump: for one byte there is none, neither into a file nor a pipe. (One
        // that is not dumpable might not look at its own pages.)
        let none = libc::rlimit {
            rlim_cur: 1,
            rlim_max: 1,
        };
        // SAFETY: reads a limit, ours.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
        call();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let Ok(child @ 1..) = c_int::try_from(child) else {
        return Tried::NoChild;
    };
    let mut status = 0;
    loop {
        // SAFETY: writes the status, into ours.
        let ended = unsafe { libc::waitpid(child, &mut status, libc::__WALL) };
        if ended == child {
            break;
        }
        // SAFETY: errno's location is valid for this thread.
        if unsafe { *libc::__errno_location() } != libc::EINTR {
            return Tried::NoChild;
        }
    }
    if libc::WIFEXITED(status) {
        Tried::Survived
    } else {
        Tried::Killed
    }
}

/// The digits of seccomp's mode and of the number of filters of this thread: 0 without any, and another number once more of them
/// have come. If that cannot be found out, the error number of the attempt; 0 where the kernel does not tell.
///
/// Not by prctl(PR_GET_SECCOMP), for which a filter may kill, as strict mode does: to read a file is what the loader has just
/// done. Of a filter that comes later no call can tell that it might not kill for.
pub fn in_force() -> Result<u32, c_int> {
    // SAFETY: a path that ends in a nul byte.
    let fd = unsafe {
        libc::open(
            c"/proc/thread-self/status".as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        // SAFETY: errno's location is valid for this thread.
        return Err(unsafe { *libc::__errno_location() });
    }
    let mut seen = Seen::default();
    let mut text = [0; 512];
    loop {
        // SAFETY: the buffer is valid for writes of its length.
        let count = unsafe { libc::read(fd, text.as_mut_ptr().cast(), text.len()) };
        let count = usize::try_from(count).unwrap_or(0);
        for byte in text.get(..count).unwrap_or_default() {
            seen.see(*byte);
        }
        if count == 0 || seen.lines == 2 {
            break;
        }
    }
    // SAFETY: opened above, and closed by nobody else.
    unsafe { libc::close(fd) };
    seen.digits.ok_or(0)
}

/// Finds seccomp's two lines in `/proc/PID/status` byte by byte: the groups that stand before them may fill many pages.
#[derive(Default)]
struct Seen {
    /// So much of the first line's start has just been seen.
    matched: usize,
    digits: Option<u32>,
    /// That have ended. Before Linux 5.9 the second is another one, which does not change what matters.
    lines: u8,
}

impl Seen {
    fn see(&mut self, byte: u8) {
        const START: &[u8] = b"\nSeccomp:\t";
        match START.get(self.matched) {
            Some(next) if *next == byte => self.matched += 1,
            // It may begin anew; its first byte does not come again in it.
            Some(_) => self.matched = usize::from(byte == b'\n'),
            None if self.lines == 2 => {}
            None if byte == b'\n' => self.lines += 1,
            None => {
                if let Some(digit) = byte.checked_sub(b'0').filter(|digit| *digit < 10) {
                    let before = self.digits.unwrap_or(0);
                    self.digits = Some(before.wrapping_mul(10).wrapping_add(digit.into()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_shows() {
        for (status, found) in [
            (
                "Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\nx:\t1\n",
                Some(0),
            ),
            (
                "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\nx:\t1\n",
                Some(21),
            ),
            ("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t12\n", Some(212)),
            ("Name:\tSeccomp:\t0\n\nSecc\nSeccomp:\t2\n", Some(2)),
            // Without the line nobody knows.
            ("Name:\tx\n", None),
            ("Name:\tx\nSeccomp:\t", None),
        ] {
            let mut seen = Seen::default();
            status.bytes().for_each(|byte| seen.see(byte));
            assert_eq!(seen.digits, found, "{status}");
        }
    }

    #[test]
    fn a_child_survives_or_not() {
        assert!(try_in_child(|| ()) == Tried::Survived);
        // SAFETY: ends the child.
        let killed = || _ = unsafe { libc::raise(libc::SIGKILL) };
        assert!(try_in_child(killed) == Tried::Killed);
    }
}
