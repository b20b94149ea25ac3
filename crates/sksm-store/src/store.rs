use core::ffi::CStr;

use crate::error::{Error, Fault};
use crate::name::{Name, meaning};
use crate::sys::{self, Errno, Fd};

/// A directory in memory of this user's, whose files all his processes share.
#[derive(Debug)]
pub struct Store {
    pub(crate) dir: Fd,
    device: u64,
    user: u32,
    limit: u64,
    executable: bool,
}

/// What is in the store, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// How many files.
    pub files: u64,
    /// The memory that they take.
    pub bytes: u64,
}

/// The mode of everything that is published: its owner may read it, and nobody write.
const MODE: u32 = 0o400;
const TMPFS: libc::c_long = 0x0102_1994;
/// Whose locks say who publishes what.
const LOCK: &CStr = c".lock";
/// How often a name is asked for that others remove.
const ATTEMPTS: u32 = 3;
/// Longer paths would have an object's name cut off in `/proc/self/maps`.
const LONGEST_PATH: usize = 200;

impl Store {
    /// Opens the store in this directory, which it makes if there is none.
    ///
    /// # Errors
    ///
    /// A directory that others own or may open, or that is not in memory, is refused: see [`Fault`].
    pub fn open_at(path: &CStr) -> Result<Self, Error> {
        // SAFETY: they read what the kernel knows.
        let (secure, real, user) = unsafe {
            (
                libc::getauxval(libc::AT_SECURE),
                libc::getuid(),
                libc::geteuid(),
            )
        };
        if secure != 0 || real != user {
            return Err(Error::new(Fault::Privileged, 0));
        }
        let bytes = path.to_bytes();
        if !bytes.starts_with(b"/") || bytes.len() > LONGEST_PATH {
            return Err(Error::new(Fault::Path, 0));
        }
        // SAFETY: a path that ends in a nul byte.
        let made = unsafe { libc::mkdir(path.as_ptr(), 0o700) } == 0;
        if !made && sys::errno() != libc::EEXIST {
            return Err(Error::new(Fault::Directory, sys::errno()));
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let dir = sys::open(path, flags).map_err(|errno| match errno {
            libc::ELOOP | libc::ENOTDIR => Error::new(Fault::NotDirectory, errno),
            // Another user's, which no other may open.
            libc::EACCES => Error::new(Fault::Owner, errno),
            _ => Error::new(Fault::Directory, errno),
        })?;
        let stat = dir.stat().map_err(system)?;
        if stat.st_uid != user {
            return Err(Error::new(Fault::Owner, 0));
        }
        if stat.st_mode & 0o077 != 0 {
            return Err(Error::new(Fault::Mode, 0));
        }
        let executable = in_memory(&dir).inspect_err(|_| {
            if made {
                // SAFETY: a path that ends in a nul byte; what is not empty stays.
                unsafe { libc::rmdir(path.as_ptr()) };
            }
        })?;
        Ok(Store {
            dir,
            device: stat.st_dev,
            user,
            limit: sys::memory() / 10,
            executable,
        })
    }

    /// Opens the directory that is named, or `/dev/shm/sksm-UID`.
    ///
    /// # Errors
    ///
    /// As [`Store::open_at`].
    #[doc(hidden)]
    pub fn open_named(named: Option<&[u8]>) -> Result<Self, Error> {
        let mut path = [0; LONGEST_PATH + 1];
        let mut digits = [0; 10];
        let named = match named.filter(|named| !named.is_empty()) {
            Some(named) => [named, b""],
            // SAFETY: geteuid cannot fail.
            None => [
                b"/dev/shm/sksm-",
                sys::decimal(unsafe { libc::geteuid() }, &mut digits),
            ],
        };
        if named.iter().map(|part| part.len()).sum::<usize>() > LONGEST_PATH {
            return Err(Error::new(Fault::Path, 0));
        }
        for (place, byte) in path.iter_mut().zip(named.into_iter().flatten()) {
            *place = *byte;
        }
        Self::open_at(CStr::from_bytes_until_nul(&path).unwrap_or_default())
    }

    /// May hold so many bytes, instead of a tenth of the machine's memory.
    #[must_use]
    pub fn with_limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// How many bytes it may hold.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether code can be mapped from it.
    #[must_use]
    pub fn is_executable(&self) -> bool {
        self.executable
    }

    /// What it holds.
    ///
    /// # Errors
    ///
    /// [`Fault::System`] if the directory cannot be read.
    pub fn held(&self) -> Result<Held, Error> {
        let mut held = Held::default();
        self.each_file(|_, stat| {
            held.files += 1;
            held.bytes += taken(stat);
            true
        })?;
        Ok(held)
    }

    /// Removes what nobody uses, and tells what that was. What is in use stays.
    ///
    /// # Errors
    ///
    /// [`Fault::System`] if the directory cannot be read.
    pub fn collect(&self) -> Result<Held, Error> {
        self.remove_unused(|_| true)
    }

    /// Removes everything. Who has it mapped keeps it, and later processes share with others.
    ///
    /// # Errors
    ///
    /// [`Fault::System`] if the directory cannot be read.
    pub fn clear(&self) -> Result<Held, Error> {
        let mut removed = Held::default();
        self.each_file(|name, stat| {
            if self.dir.unlink(name).is_ok() {
                removed.files += 1;
                removed.bytes += taken(stat);
            }
            true
        })?;
        Ok(removed)
    }

    /// Shows each file that is the store's.
    pub(crate) fn each_file(
        &self,
        mut see: impl FnMut(&CStr, &libc::stat) -> bool,
    ) -> Result<(), Error> {
        let each = |name: &CStr| match self.dir.stat_at(name) {
            Ok(stat) if meaning(name.to_bytes()).is_some() => see(name, &stat),
            _ => true,
        };
        self.dir.each_name(each).map_err(system)
    }

    /// Removes what nobody uses for as long as `more` says so, which is told what has been removed; the oldest first.
    fn remove_unused(&self, more: impl Fn(u64) -> bool) -> Result<Held, Error> {
        let mut removed = Held::default();
        let mut last = None;
        while more(removed.bytes) {
            let mut next: Option<((i64, i64, u64), Name, u64)> = None;
            self.each_file(|name, stat| {
                let age = (stat.st_mtime, stat.st_mtime_nsec, stat.st_ino);
                let before = next.as_ref().is_none_or(|(other, ..)| age < *other);
                if last.is_none_or(|last| age > last) && before {
                    next = Some((age, Name::of(name), taken(stat)));
                }
                true
            })?;
            let Some((age, name, bytes)) = next else {
                break;
            };
            last = Some(age);
            if self.remove_if_unused(name.as_c_str()) {
                removed.files += 1;
                removed.bytes += bytes;
            }
        }
        Ok(removed)
    }

    /// Somebody who opens it just then has a file without a name, which is as good for him.
    fn remove_if_unused(&self, name: &CStr) -> bool {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let Ok(file) = sys::open_at(Some(&self.dir), name, flags, 0) else {
            return false;
        };
        if !file.lease() {
            return false;
        }
        let removed = self.dir.unlink(name).is_ok();
        file.end_lease();
        removed
    }

    /// What is published under this name; none if nothing is, or it is just being removed.
    pub(crate) fn find(&self, name: &CStr) -> Result<Option<Fd>, Error> {
        // While it is being removed, an open would wait for that.
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match sys::open_at(Some(&self.dir), name, flags, 0) {
            Ok(file) => file,
            Err(libc::ENOENT | libc::EAGAIN) => return Ok(None),
            Err(libc::ELOOP) => return Err(Error::new(Fault::Damaged, libc::ELOOP)),
            Err(errno) => return Err(system(errno)),
        };
        let stat = file.stat().map_err(system)?;
        let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let ours = stat.st_uid == self.user && stat.st_dev == self.device;
        if !regular || !ours || stat.st_mode & 0o7777 != MODE {
            return Err(Error::new(Fault::Damaged, 0));
        }
        Ok(Some(file))
    }

    /// Does this while no other process does it with the same key. The end of a process is the end of its lock, and a child inherits
    /// none.
    pub(crate) fn alone<R>(
        &self,
        key: u64,
        patience: u32,
        work: impl FnOnce() -> Result<R, Error>,
    ) -> Result<R, Error> {
        // Whoever holds a lease on it shall not make others wait.
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = sys::open_at(Some(&self.dir), LOCK, flags, 0o600).map_err(full)?;
        let mut waited = 0;
        while !file.try_lock(key).map_err(system)? {
            if waited >= patience {
                return Err(Error::new(Fault::Busy, 0));
            }
            sys::wait(1);
            waited += 1;
        }
        let result = work();
        file.unlock(key);
        result
    }

    /// Makes a file of this name that holds what `write` writes, all of it or nothing. `needed` is what it will take in memory.
    ///
    /// Until it is whole it has no name at all, so that whatever ends the process leaves nothing behind.
    pub(crate) fn publish(
        &self,
        name: &CStr,
        len: u64,
        needed: u64,
        write: impl Fn(&Fd) -> Result<(), Errno>,
    ) -> Result<Fd, Error> {
        if len > sys::file_size_limit() {
            return Err(Error::new(Fault::FileSize, 0));
        }
        // Somebody may have published it meanwhile; or it is one of many, and nobody has looked at it.
        if let Some(file) = self.find(name)? {
            return Ok(file);
        }
        self.make_room(needed)?;
        let draft = match self.draft(len, &write) {
            Err(libc::ENOSPC | libc::EDQUOT) => {
                // Once more, without what nobody needs.
                self.collect()?;
                self.draft(len, &write)
            }
            other => other,
        }
        .map_err(full)?;
        for attempt in 0..ATTEMPTS {
            match draft.link(&self.dir, name) {
                Ok(()) | Err(libc::EEXIST) => {}
                Err(libc::ENOENT) if attempt == 0 => {
                    return Err(Error::new(Fault::Proc, libc::ENOENT));
                }
                // It had its name, which somebody has removed.
                Err(libc::ENOENT) => break,
                Err(errno) => return Err(full(errno)),
            }
            // While the draft is open no one else can take it for unused; but another's of that name may just be removed.
            if let Some(file) = self.find(name)? {
                return Ok(file);
            }
        }
        Err(Error::new(Fault::Busy, 0))
    }

    fn draft(&self, len: u64, write: impl Fn(&Fd) -> Result<(), Errno>) -> Result<Fd, Errno> {
        let flags = libc::O_TMPFILE | libc::O_RDWR;
        let draft = sys::open_at(Some(&self.dir), c".", flags, MODE)?;
        // Whatever the umask takes away.
        if draft.stat()?.st_mode & 0o7777 != MODE {
            draft.set_mode(MODE)?;
        }
        draft.set_len(len)?;
        write(&draft)?;
        Ok(draft)
    }

    fn make_room(&self, needed: u64) -> Result<(), Error> {
        let room = self.limit.checked_sub(needed);
        let room = room.ok_or(Error::new(Fault::Limit, 0))?;
        let too_much = self.held()?.bytes.saturating_sub(room);
        if too_much > 0 && self.remove_unused(|removed| removed < too_much)?.bytes < too_much {
            return Err(Error::new(Fault::Limit, 0));
        }
        Ok(())
    }
}

/// Whether code can be mapped from this file system, which must be in memory.
pub(crate) fn in_memory(dir: &Fd) -> Result<bool, Error> {
    let (of, vfs) = dir.file_system().map_err(system)?;
    if of.f_type != TMPFS {
        return Err(Error::new(Fault::FileSystem, 0));
    }
    Ok(vfs.f_flag & libc::ST_NOEXEC as libc::c_ulong == 0)
}

fn taken(stat: &libc::stat) -> u64 {
    stat.st_blocks as u64 * 512
}

pub(crate) fn system(errno: Errno) -> Error {
    Error::new(Fault::System, errno)
}

/// What it means where something was to be written.
fn full(errno: Errno) -> Error {
    let fault = match errno {
        libc::ENOSPC => Fault::Space,
        libc::EDQUOT => Fault::Quota,
        libc::EFBIG => Fault::FileSize,
        libc::ELOOP => Fault::Damaged,
        _ => Fault::System,
    };
    Error::new(fault, errno)
}
