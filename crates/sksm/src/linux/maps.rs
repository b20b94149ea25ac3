//! `/proc/self/maps`, read without allocating.

use core::ffi::CStr;

use crate::os::errno;
use crate::{Error, Kind, Region};

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line<'a> {
    /// The addresses.
    pub region: Region,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
    /// Writes stay this process's own.
    pub private: bool,
    /// Where in the file it begins.
    pub offset: u64,
    /// The file's inode number; 0 without a file.
    pub inode: u64,
    /// The file's path, or a name such as `[heap]`; empty for anonymous memory.
    pub path: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads a line; none if it does not look like one.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.splitn(6, |byte| *byte == b' ');
        let mut ends = words.next()?.splitn(2, |byte| *byte == b'-');
        let (start, end) = (hexadecimal(ends.next()?)?, hexadecimal(ends.next()?)?);
        let flags: &[u8; 4] = words.next()?.try_into().ok()?;
        let (offset, _device) = (hexadecimal(words.next()?)? as u64, words.next()?);
        let inode = decimal(words.next()?)?;
        Some(Line {
            region: Region {
                start,
                len: end.checked_sub(start)?,
            },
            read: flags[0] == b'r',
            write: flags[1] == b'w',
            execute: flags[2] == b'x',
            private: flags[3] == b'p',
            offset,
            inode,
            path: unpadded(words.next().unwrap_or_default()),
        })
    }

    /// What the mapping holds.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let named = |prefix: &[u8]| self.path.starts_with(prefix);
        if !self.private || named(b"[v") || (!self.read && !self.write && !self.execute) {
            Kind::Other
        } else if named(b"[stack") {
            Kind::Stack
        } else if self.execute {
            Kind::Text
        } else if self.inode != 0 {
            Kind::Data
        } else {
            Kind::Heap
        }
    }

    /// As `mprotect(2)` takes it.
    #[must_use]
    pub fn protection(&self) -> i32 {
        let bit = |set: bool, bit| if set { bit } else { libc::PROT_NONE };
        bit(self.read, libc::PROT_READ)
            | bit(self.write, libc::PROT_WRITE)
            | bit(self.execute, libc::PROT_EXEC)
    }
}

/// Without the spaces that the kernel puts before a path; those at its end are the file's name.
fn unpadded(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b" ") {
        path = rest;
    }
    path
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    usize::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

const OWN: &CStr = c"/proc/self/maps";
const OWN_NAME: &str = "/proc/self/maps";

/// Shows each mapping of this process until `see` returns false. It allocates nothing and makes no call that a signal handler
/// may not make. The mappings may change meanwhile; `see` itself may change them too.
///
/// # Errors
///
/// [`Error::Read`] without `/proc`.
pub fn each_own(mut see: impl FnMut(&Line<'_>) -> bool) -> Result<(), Error> {
    let read_error = |errno| Error::Read {
        file: OWN_NAME,
        errno,
    };
    // SAFETY: a path that ends in a nul byte.
    let fd = unsafe { libc::open(OWN.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(read_error(errno()));
    }
    let result = each_line(
        |room| loop {
            // SAFETY: the room is valid for writes of its length.
            let count = unsafe { libc::read(fd, room.as_mut_ptr().cast(), room.len()) };
            match usize::try_from(count) {
                Ok(count) => return Ok(count),
                Err(_) if errno() == libc::EINTR => {}
                Err(_) => return Err(read_error(errno())),
            }
        },
        |line| match Line::parse(line) {
            Some(line) => Ok(see(&line)),
            None => Err(read_error(libc::EINVAL)),
        },
    );
    // SAFETY: opened above, and owned by nobody else.
    unsafe { libc::close(fd) };
    result
}

/// Cuts what `read` gives into lines. Of a line that is longer than the buffer the end is lost: the end of a path.
fn each_line(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Error>,
    mut see: impl FnMut(&[u8]) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut buffer = [0; 1024];
    let mut filled = 0;
    // The rest of a line whose start has been seen.
    let mut skipping = false;
    loop {
        let Some(room) = buffer.get_mut(filled..) else {
            return Ok(());
        };
        let count = read(room)?;
        filled += count;
        let mut start = 0;
        while let Some(text) = buffer.get(start..filled) {
            let Some(len) = text.iter().position(|byte| *byte == b'\n') else {
                break;
            };
            let line = text.get(..len).unwrap_or_default();
            if !core::mem::take(&mut skipping) && !see(line)? {
                return Ok(());
            }
            start += len + 1;
        }
        if count == 0 {
            return Ok(());
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == buffer.len() {
            if !skipping && !see(&buffer)? {
                return Ok(());
            }
            skipping = true;
            filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line =
            b"7f01a000-7f01c000 r-xp 00002000 fd:01 1234                       /usr/lib/my lib.so";
        let line = Line::parse(line).unwrap();
        assert_eq!(line.region, Region::from((0x7f01a000, 0x2000)));
        assert_eq!(line.path, b"/usr/lib/my lib.so");
        assert_eq!((line.offset, line.inode), (0x2000, 1234));
        assert_eq!(line.kind(), Kind::Text);
        assert_eq!(line.protection(), libc::PROT_READ | libc::PROT_EXEC);
        for (end, path) in [
            ("", ""),
            (" ", ""),
            ("     /a b ", "/a b "),
            ("  /a\t", "/a\t"),
        ] {
            let line = format!("1000-2000 r--p 0 0 0{end}");
            let line = Line::parse(line.as_bytes()).unwrap();
            assert_eq!(line.path, path.as_bytes());
        }
    }

    #[test]
    fn kinds_are_told() {
        for (flags, inode, path, kind) in [
            ("rw-p", 7, "/lib/x.so", Kind::Data),
            ("r--p", 7, "/lib/x.so", Kind::Data),
            ("rw-p", 0, "[heap]", Kind::Heap),
            ("rw-p", 0, "", Kind::Heap),
            ("rw-p", 0, "[anon:arena]", Kind::Heap),
            ("rwxp", 0, "", Kind::Text),
            ("rw-p", 0, "[stack]", Kind::Stack),
            ("r-xp", 0, "[vdso]", Kind::Other),
            ("rw-s", 7, "/dev/shm/x", Kind::Other),
            ("---p", 0, "", Kind::Other),
        ] {
            let line = format!("1000-2000 {flags} 00000000 00:00 {inode}    {path}");
            assert_eq!(Line::parse(line.as_bytes()).unwrap().kind(), kind, "{line}");
        }
    }

    #[test]
    fn nonsense_is_no_line() {
        for bad in [
            "",
            "1000",
            "1000-",
            "2000-1000 r--p 0 0 0",
            "1000-2000 r-- 0 0 0",
            "x-y r--p 0 0 0 ",
        ] {
            assert_eq!(Line::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn own_mappings_are_the_kernels() {
        let local = 0;
        let mut found = Vec::new();
        each_own(|line| {
            if line.region.contains(&raw const local as usize)
                || line
                    .region
                    .contains(each_line_lengths as *const () as usize)
            {
                found.push(line.kind());
            }
            true
        })
        .unwrap();
        // Of a test's own thread the stack is plain memory.
        assert_eq!(found, [Kind::Text, Kind::Heap]);
    }

    #[test]
    fn each_line_lengths() {
        // Lines around the buffer's size, read in pieces of every size.
        let lines: Vec<String> = [0, 1, 500, 1022, 1023, 1024, 1025, 3000, 4]
            .map(|len| "x".repeat(len))
            .into();
        let text = lines.join("\n") + "\n";
        for piece in [1, 2, 7, 1000, 1024, 5000] {
            let mut rest = text.as_bytes();
            let mut seen = Vec::new();
            each_line(
                |room| {
                    let count = piece.min(room.len()).min(rest.len());
                    room[..count].copy_from_slice(&rest[..count]);
                    rest = &rest[count..];
                    Ok(count)
                },
                |line| {
                    seen.push(line.len());
                    Ok(true)
                },
            )
            .unwrap();
            let expected: Vec<usize> = lines.iter().map(|line| line.len().min(1024)).collect();
            assert_eq!(seen, expected, "in pieces of {piece}");
        }
    }
}
