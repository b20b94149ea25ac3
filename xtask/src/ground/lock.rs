//! Who works on what in the cache; those who have to wait say for whom.
//!
//! The cache has a lock, which is held to put something into it. Each tree in it has one: shared by those who build from it,
//! and alone for who changes it, which nobody begins without the lock of the cache. Each directory of objects has one for
//! its builder. They are taken in this order.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{ground::interrupt, terminal::progress::Step};

/// Held until dropped; the kernel releases it too when the process dies.
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Closing is not enough: a child that another thread has just forked has the file open until it execs.
    fn drop(&mut self) {
        // It is released at the latest when nobody has the file open.
        flock(&self.file, FlockOperation::Unlock).ok();
    }
}

impl Lock {
    /// Waits until nobody else has it.
    pub fn acquire(path: &Path) -> Result<Self> {
        Self::wait(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits until nobody has it alone.
    pub fn share(path: &Path) -> Result<Self> {
        Self::wait(path, FlockOperation::NonBlockingLockShared)
    }

    /// Has it alone if nobody else has it just now.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    fn wait(path: &Path, how: FlockOperation) -> Result<Self> {
        let mut file = open(path)?;
        let mut waiting = None;
        loop {
            match flock(&file, how) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(Errno::INTR) => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
            let mut holder = String::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_string(&mut holder)?;
            waiting
                .get_or_insert_with(|| Step::begin("waiting for another invocation"))
                .detail(holder.trim());
            std::thread::sleep(Duration::from_millis(200));
            interrupt::check()?;
        }
        if let Some(step) = waiting {
            step.done();
        }
        let command: Vec<_> = std::env::args_os()
            .skip(1)
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(
            file,
            "pid {}: cargo xtask {}",
            std::process::id(),
            command.join(" ")
        )?;
        Ok(Self { file })
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_share_what_nobody_then_has_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let alone = || Lock::try_acquire(&path).unwrap().is_some();
        let one = Lock::share(&path).unwrap();
        let other = Lock::share(&path).unwrap();
        assert!(!alone());
        drop(one);
        assert!(!alone());
        drop(other);
        assert!(alone());
    }

    #[test]
    fn is_released_although_a_child_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::acquire(&path).unwrap();
        // As a child has it between fork and exec.
        let inherited = held.file.try_clone().unwrap();
        drop(held);
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        drop(inherited);
    }

    #[test]
    fn names_the_holder_and_is_released_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::acquire(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("pid {}: ", std::process::id())));
        let other = File::open(&path).unwrap();
        assert_eq!(
            flock(&other, FlockOperation::NonBlockingLockExclusive),
            Err(Errno::WOULDBLOCK)
        );
        drop(held);
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
