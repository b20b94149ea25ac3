//! What the files of /proc are made of, and whether there is a process at all.

use std::path::Path;

use crate::Error;

/// Reads a file of proc: bytes, as paths may be anything.
pub(crate) fn read(path: &Path, file: &'static str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| match error.raw_os_error() {
        Some(errno @ libc::ESRCH) => Error::Gone { errno },
        Some(libc::ENOENT) if Path::new("/proc/self").exists() && !there(path) => {
            Error::Gone { errno: libc::ESRCH }
        }
        errno => Error::Read {
            file,
            errno: errno.unwrap_or(libc::EIO),
        },
    })
}

/// Whether the process is there: a file may be missing because this kernel has it not.
fn there(path: &Path) -> bool {
    path.parent().is_some_and(Path::exists)
}

/// Its lines, which end at a newline and nothing else.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// Why there is no process of this number to be had.
pub(crate) fn no_process(pid: u32) -> Error {
    if is_kernel_thread(pid) {
        return Error::KernelThread { pid };
    }
    match first_thread(pid) {
        Some(process) if process != pid => Error::Thread { tid: pid, process },
        _ => Error::Gone { errno: libc::ESRCH },
    }
}

/// The process that a thread belongs to.
fn first_thread(tid: u32) -> Option<u32> {
    let status = std::fs::read(format!("/proc/{tid}/status")).ok()?;
    let process = lines(&status).find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(process).ok()?.trim().parse().ok()
}

pub(crate) fn is_kernel_thread(pid: u32) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Of the fields after the name, which may hold anything: state, four numbers of other processes and of the terminal, that of
    // its foreground group, flags.
    let after = stat.rsplit(|byte| *byte == b')').next();
    let flags = after.and_then(|fields| std::str::from_utf8(fields).ok()?.split(' ').nth(7));
    flags
        .and_then(|flags| flags.parse::<u32>().ok())
        .is_some_and(|flags| flags & PF_KTHREAD != 0)
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_the_kernel_has_not_is_no_end_of_a_process() {
        let errno = libc::ENOENT;
        let file = "/proc/PID/nonsense";
        assert_eq!(
            read(Path::new("/proc/self/nonsense"), file),
            Err(Error::Read { file, errno })
        );
    }
}
