use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::Error;
use crate::name::{Stored, meaning};
use crate::store::Store;

/// What is in the store, and who uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The memory that all of it takes, in bytes.
    pub bytes: u64,
    /// What may be held.
    pub limit: u64,
    /// Each file, the largest first.
    pub entries: Vec<Entry>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The file's name.
    pub file: String,
    /// The object whose code it is; none for frozen data.
    pub object: Option<String>,
    /// The memory that it takes, in bytes.
    pub bytes: u64,
    /// Seconds since 1970, when it was published.
    pub published: i64,
    /// The processes that map it, as far as they can be seen.
    pub users: Vec<User>,
    /// What its users have mapped of it altogether, in bytes: what they would hold without the store.
    pub mapped: u64,
}

/// A process that maps a file of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct User {
    /// The process.
    pub pid: u32,
    /// What it has mapped of the file, in bytes.
    pub mapped: u64,
}

impl Entry {
    /// What the store saves of it: what the users would hold each by himself, less what the file takes.
    #[must_use]
    pub fn saved(&self) -> i64 {
        self.mapped as i64 - self.bytes as i64
    }
}

impl Store {
    /// What is in the store, and which processes map it. `/proc` shows those of the same user, and to root all.
    ///
    /// # Errors
    ///
    /// [`Fault::System`](crate::Fault::System) if the directory cannot be read.
    pub fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage {
            limit: self.limit(),
            ..Usage::default()
        };
        let mut places = Vec::new();
        self.each_file(|name, stat| {
            let object = match meaning(name.to_bytes()) {
                Some(Stored::Code(own)) => Some(String::from_utf8_lossy(own).into_owned()),
                _ => None,
            };
            let bytes = stat.st_blocks as u64 * 512;
            usage.bytes += bytes;
            usage.entries.push(Entry {
                file: name.to_string_lossy().into_owned(),
                object,
                bytes,
                published: stat.st_mtime,
                users: Vec::new(),
                mapped: 0,
            });
            places.push((stat.st_dev, stat.st_ino));
            true
        })?;
        for pid in processes() {
            for (place, len) in mappings(pid) {
                let at = places.iter().position(|known| *known == place);
                let Some(entry) = at.and_then(|at| usage.entries.get_mut(at)) else {
                    continue;
                };
                entry.mapped += len;
                match entry.users.last_mut().filter(|user| user.pid == pid) {
                    Some(user) => user.mapped += len,
                    None => entry.users.push(User { pid, mapped: len }),
                }
            }
        }
        usage
            .entries
            .sort_by_key(|entry| std::cmp::Reverse(entry.bytes));
        Ok(usage)
    }
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Each mapping of a file: its device and inode, and its length.
fn mappings(pid: u32) -> Vec<((u64, u64), u64)> {
    // Gone, or another user's.
    let text = fs::read(Path::new("/proc").join(pid.to_string()).join("maps")).unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(mapping).collect()
}

fn mapping(line: &[u8]) -> Option<((u64, u64), u64)> {
    let line = std::ffi::OsStr::from_bytes(line).to_string_lossy();
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (_flags, _offset) = (words.next()?, words.next()?);
    let (major, minor) = words.next()?.split_once(':')?;
    let inode: u64 = words.next()?.parse().ok()?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let device = libc::makedev(number(major)? as u32, number(minor)? as u32);
    let len = number(end)?.checked_sub(number(start)?)?;
    (inode != 0).then_some(((device as u64, inode), len))
}
