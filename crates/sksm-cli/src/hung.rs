//! Processes whose memory makes whoever reads it wait for ever: of a file system in user space that does not answer, or with faults
//! that their own process handles. They are known again by when they began, whatever they execute.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::domain::Group;
use crate::target::user_of;

/// As many are kept, the latest.
const KEPT: usize = 1000;
/// So many of one owner, and all that are the owner's are left alone: who can make one can make more.
const PATIENT: usize = 2;

/// Whose memory is read; 0: nobody's was yet.
static READ: AtomicU32 = AtomicU32::new(0);
static KNOWN: Mutex<Known> = Mutex::new(Known(Vec::new()));

/// Notes that memory of this process is read from now on.
pub fn reads(pid: u32) {
    READ.store(pid, Ordering::Relaxed);
}

/// The process that was noted last.
pub fn read_last() -> u32 {
    READ.load(Ordering::Relaxed)
}

/// Whether memory of this process is not to be read again.
pub fn is_known(pid: u32) -> bool {
    lock().has(pid)
}

/// Beside the file that tells what the scanner does.
pub fn beside(state: &Path) -> PathBuf {
    state.with_file_name("hung.json")
}

/// Learns what an earlier scanner met with.
pub fn learn(file: &Path) -> Result<()> {
    // Where it may not be read it is of a scanner of others.
    let none = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
    let text = match read(file) {
        Err(error) if none.contains(&error.kind()) => return Ok(()),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let known = serde_json::from_str(&text)
        .with_context(|| format!("{} is no list of `sksm scan`", file.display()))?;
    *lock() = known;
    Ok(())
}

/// What anybody may write would leave alone whoever they like.
fn read(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    // SAFETY: tells a number.
    let own = [0, unsafe { libc::geteuid() }];
    if !own.contains(&file.metadata()?.uid()) {
        return Err(io::Error::other("it is another user's"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Adds this process, and returns the whole list as the file is to have it.
pub fn add(pid: u32) -> Result<String> {
    let mut known = lock();
    known.add(Hung::of(pid)?);
    Ok(serde_json::to_string_pretty(&*known)? + "\n")
}

fn lock() -> std::sync::MutexGuard<'static, Known> {
    KNOWN
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Who can make more processes of the same kind: a user, or whoever is root in a control group.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Owner {
    User(u32),
    Cgroup(String),
}

impl Owner {
    /// None for root outside of all control groups, who is the machine's own.
    fn of(pid: u32) -> Option<Self> {
        match user_of(pid)? {
            0 => {
                let path = Group::of(pid).ok()?.path;
                (path != "/").then_some(Owner::Cgroup(path))
            }
            user => Some(Owner::User(user)),
        }
    }
}

#[derive(Serialize, Deserialize, Clone, Debug)]
struct Hung {
    pid: u32,
    /// In ticks since the machine was booted.
    started: u64,
    owner: Option<Owner>,
}

impl Hung {
    fn of(pid: u32) -> Result<Self> {
        let started = started(pid).context("it has ended")?;
        let owner = Owner::of(pid);
        Ok(Hung {
            pid,
            started,
            owner,
        })
    }
}

/// When a process began, which no exec changes.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit(|byte| *byte == b')').next()?;
    // The 22nd in proc(5), of which two are before these.
    let field = std::str::from_utf8(after).ok()?.split_whitespace().nth(19);
    field?.parse().ok()
}

#[derive(Serialize, Deserialize, Default)]
#[serde(transparent)]
struct Known(Vec<Hung>);

impl Known {
    fn add(&mut self, hung: Hung) {
        self.0.push(hung);
        let many = self.0.len().saturating_sub(KEPT);
        self.0.drain(..many);
    }

    fn has(&self, pid: u32) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let own = self.0.iter().filter(|hung| hung.pid == pid);
        if own.clone().count() > 0
            && started(pid).is_some_and(|at| own.clone().any(|hung| hung.started == at))
        {
            return true;
        }
        let mut counts: BTreeMap<&Owner, usize> = BTreeMap::new();
        for owner in self.0.iter().filter_map(|hung| hung.owner.as_ref()) {
            *counts.entry(owner).or_default() += 1;
        }
        counts.retain(|_, count| *count >= PATIENT);
        !counts.is_empty() && Owner::of(pid).is_some_and(|owner| counts.contains_key(&owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hung(pid: u32, started: u64, owner: Option<Owner>) -> Hung {
        Hung {
            pid,
            started,
            owner,
        }
    }

    #[test]
    fn it_is_the_process_and_not_its_number() {
        let me = std::process::id();
        let since = started(me).unwrap();
        for (pid, at, right) in [
            (me, since, true),
            (me, since + 1, false),
            (me + 1, since, false),
        ] {
            let known = Known(vec![hung(pid, at, None)]);
            assert_eq!(known.has(me), right, "{pid} {at}");
        }
    }

    #[test]
    fn all_of_an_owner_are_left_alone_after_two() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let one = Owner::of(child.id());
        let other = Some(Owner::User(12_345_678));
        let mut known = Known::default();
        for (owner, right) in [
            (&other, false),
            (&other, false),
            (&one, false),
            (&one, one.is_some()),
        ] {
            known.add(hung(1, 2, owner.clone()));
            assert_eq!(known.has(child.id()), right, "{owner:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_list_has_an_end() {
        let mut known = Known::default();
        (0..2 * KEPT as u32).for_each(|pid| known.add(hung(pid, 0, None)));
        assert_eq!(known.0.len(), KEPT);
        assert_eq!(
            known.0.last().map(|last| last.pid),
            Some(2 * KEPT as u32 - 1)
        );
    }

    #[test]
    fn the_next_one_reads_what_was_written() {
        let mut known = Known::default();
        known.add(hung(1, 2, Some(Owner::Cgroup("/pod".into()))));
        known.add(hung(3, 4, Some(Owner::User(1000))));
        let text = serde_json::to_string(&known).unwrap();
        let read: Known = serde_json::from_str(&text).unwrap();
        assert_eq!(format!("{:?}", read.0), format!("{:?}", known.0));
    }
}
