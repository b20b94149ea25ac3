//! What a program's file says about loading an object into it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why the loader would not take the object, or what it needs to do so.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing is loaded into a program without a loader.
    Static,
    /// As the headers of both say.
    OtherMachine { bits: u8 },
    /// The loader does not trust the environment.
    MoreRights,
    /// gcc's AddressSanitizer, which checks that nothing was loaded before it.
    AddressSanitizer,
}

/// What is known of the program that runs in the end: of a script, its interpreter.
pub fn look(name: &OsStr) -> io::Result<(PathBuf, Option<Finding>)> {
    let mut path = find(name)?;
    // As many as the kernel follows, and one more for env(1).
    for _ in 0..6 {
        match interpreter(&path)? {
            Some(next) => path = find(&next)?,
            None => break,
        }
    }
    let finding = examine(&path)?;
    Ok((path, finding))
}

/// Whether this object has the unwinder's library loaded, as one does that was built with std.
pub fn needs_unwinder(object: &Path) -> io::Result<bool> {
    let elf = Elf::read(&File::open(object)?)?;
    Ok(elf.is_some_and(|elf| elf.needs(b"libgcc_s.")))
}

/// As execvp(3) does.
fn find(name: &OsStr) -> io::Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let runs = |path: &PathBuf| {
        let file = fs::metadata(path);
        file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(runs)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The program that a script names in its first line; what env(1) would run.
fn interpreter(path: &Path) -> io::Result<Option<OsString>> {
    let mut start = Vec::new();
    File::open(path)?.take(256).read_to_end(&mut start)?;
    let Some(line) = start.strip_prefix(b"#!") else {
        return Ok(None);
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty());
    let first = words.next();
    let env = first.is_some_and(|first| Path::new(OsStr::from_bytes(first)).ends_with("env"));
    // Of its options only -S stands in scripts, and assignments are no program.
    let named = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='));
    let word = if env { named.or(first) } else { first };
    Ok(word.map(|word| OsString::from_vec(word.to_vec())))
}

fn examine(path: &Path) -> io::Result<Option<Finding>> {
    let file = File::open(path)?;
    let Some(elf) = Elf::read(&file)? else {
        return Ok(None);
    };
    let own = Elf::read(&File::open("/proc/self/exe")?)?;
    let alike = own.is_some_and(|own| (own.bits, own.machine) == (elf.bits, elf.machine));
    Ok(if !alike {
        Some(Finding::OtherMachine { bits: elf.bits })
    } else if has_more_rights(path, &file)? {
        Some(Finding::MoreRights)
    } else if !elf.loader {
        Some(Finding::Static)
    } else if elf.needs(b"libasan.s") {
        Some(Finding::AddressSanitizer)
    } else {
        None
    })
}

/// Set-uid, set-gid for other than us, or with file capabilities.
fn has_more_rights(path: &Path, file: &File) -> io::Result<bool> {
    let data = file.metadata()?;
    // SAFETY: these only read.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let mode = data.mode();
    let set = (mode & libc::S_ISUID != 0 && data.uid() != user)
        || (mode & libc::S_ISGID != 0 && data.gid() != group);
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let name = c"security.capability";
    // SAFETY: both end in nul bytes; without room the call writes nothing.
    let size = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    // For root they change nothing.
    Ok(set || (size > 0 && user != 0))
}

/// What an ELF file's headers say.
#[derive(Default)]
struct Elf {
    bits: u8,
    machine: u16,
    loader: bool,
    /// The libraries that it needs, by their names as far as [`NAME`] goes.
    needed: Vec<[u8; NAME]>,
}

/// No name that is looked for is longer.
const NAME: usize = 9;

impl Elf {
    /// None for what is no such file.
    fn read(file: &File) -> io::Result<Option<Self>> {
        let mut head = [0; 64];
        // The smaller kind's header is 52 bytes long.
        let len = file.read_at(&mut head, 0)?;
        if len < 52 || head.get(..4) != Some(b"\x7fELF") {
            return Ok(None);
        }
        // In the other byte order it is another machine's.
        let mut elf = Elf {
            bits: if head[4] == 2 { 64 } else { 32 },
            machine: u16::from_ne_bytes([head[18], head[19]]),
            ..Elf::default()
        };
        if elf.bits == 64 {
            let at = word(&head, 32);
            let size = u64::from(u16::from_ne_bytes([head[54], head[55]]));
            let count = u64::from(u16::from_ne_bytes([head[56], head[57]]));
            elf.read_segments(file, at, size, count)?;
        }
        Ok(Some(elf))
    }

    fn read_segments(&mut self, file: &File, at: u64, size: u64, count: u64) -> io::Result<()> {
        const INTERPRETER: u32 = 3;
        const DYNAMIC: u32 = 2;
        const LOAD: u32 = 1;
        let mut dynamic = None;
        let mut loads = Vec::new();
        for number in 0..count {
            let mut header = [0; 56];
            file.read_exact_at(&mut header, at.saturating_add(number * size))?;
            let (offset, address) = (word(&header, 8), word(&header, 16));
            match u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) {
                INTERPRETER => self.loader = true,
                DYNAMIC => dynamic = Some((offset, word(&header, 32))),
                LOAD => loads.push((address, offset, word(&header, 32))),
                _ => {}
            }
        }
        if let Some((offset, len)) = dynamic {
            self.needed = needed(file, offset, len, &loads)?;
        }
        Ok(())
    }

    fn needs(&self, library: &[u8; NAME]) -> bool {
        self.needed.contains(library)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(found) = bytes.get(at..at + 8) {
        word.copy_from_slice(found);
    }
    u64::from_ne_bytes(word)
}

/// The libraries that the file needs.
fn needed(
    file: &File,
    offset: u64,
    len: u64,
    loads: &[(u64, u64, u64)],
) -> io::Result<Vec<[u8; NAME]>> {
    const NEEDED: u64 = 1;
    const STRINGS: u64 = 5;
    let mut entries = vec![0; usize::try_from(len.min(1 << 16)).unwrap_or(0)];
    file.read_exact_at(&mut entries, offset)?;
    let entries: Vec<(u64, u64)> = entries
        .chunks_exact(16)
        .map(|entry| (word(entry, 0), word(entry, 8)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let strings = entries.iter().find(|(tag, _)| *tag == STRINGS);
    let place = |address: u64| {
        loads.iter().find_map(|(start, offset, len)| {
            let within = address.checked_sub(*start).filter(|at| at < len)?;
            offset.checked_add(within)
        })
    };
    let Some(strings) = strings.and_then(|(_, address)| place(*address)) else {
        return Ok(Vec::new());
    };
    let named = entries.iter().filter(|(tag, _)| *tag == NEEDED);
    named
        .map(|(_, name)| {
            let mut start = [0; NAME];
            file.read_at(&mut start, strings.saturating_add(*name))?;
            Ok(start)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        for (line, found) in [
            ("#!/bin/sh -e\n", Some("/bin/sh")),
            ("#! /usr/bin/env -S A=b sh -e\n", Some("sh")),
            ("#!/usr/bin/env python3", Some("python3")),
            ("#!/usr/bin/env\n", Some("/usr/bin/env")),
            ("#!\n", None),
            ("echo", None),
            ("", None),
        ] {
            fs::write(&script, line).unwrap();
            let found = found.map(OsString::from);
            assert_eq!(interpreter(&script).unwrap(), found, "{line}");
        }
        fs::write(&script, "#!/usr/bin/env sh\n").unwrap();
        let (path, finding) = look(script.as_os_str()).unwrap();
        assert!(path.ends_with("sh"), "{}", path.display());
        assert_eq!(finding, None);
    }

    #[test]
    fn what_is_no_program_has_no_finding() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for bytes in [b"".as_slice(), b"\x7fELF", b"text"] {
            fs::write(&file, bytes).unwrap();
            assert_eq!(look(file.as_os_str()).unwrap().1, None);
        }
        assert!(look(OsStr::new("no such program")).is_err());
    }
}
