//! Processes whose memory makes whoever reads it wait for ever: of a file system in user space that does not answer, or with faults
//! that their own process handles. They are known again by when they began, whatever they execute.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::scan::state;
use crate::target::{stat, user_of};

/// As many are kept, the latest, and for so long: what hung may have been a server's fault.
const KEPT: usize = 1000;
const SECONDS: u64 = 24 * 3600;
/// So many of one owner, and all that are the owner's are left alone: who can make one can make more.
const PATIENT: usize = 2;

/// Whose memory is read; 0: nobody's.
static READ: AtomicU32 = AtomicU32::new(0);
/// Who they were before anything of them was read: they may have gone since.
static MET: Mutex<BTreeMap<u32, Hung>> = Mutex::new(BTreeMap::new());
static KNOWN: Mutex<Known> = Mutex::new(Known(Vec::new()));

/// Notes who this is, to be done before its memory is read.
pub fn meet(pid: u32) {
    if let Some(hung) = Hung::of(pid) {
        lock(&MET).insert(pid, hung);
    }
}

pub fn forget(pid: u32) {
    lock(&MET).remove(&pid);
}

/// Notes that memory of this process is asked for from now on; 0: of none.
pub fn reads(pid: u32) {
    READ.store(pid, Ordering::Relaxed);
}

/// Who is being read.
pub fn being_read() -> Option<Hung> {
    let pid = READ.load(Ordering::Relaxed);
    let met = lock(&MET).get(&pid).cloned();
    met.or_else(|| Hung::of(pid))
}

/// Whether memory of this process is not to be read again.
pub fn is_known(pid: u32) -> bool {
    if lock(&KNOWN).0.is_empty() {
        return false;
    }
    Hung::of(pid).is_some_and(|hung| lock(&KNOWN).has(&hung))
}

/// Beside the file that tells what the scanner does.
pub fn beside(state: &Path) -> PathBuf {
    state.with_file_name("hung.json")
}

/// Learns what an earlier scanner met with since the machine was booted.
pub fn learn(file: &Path) -> Result<()> {
    // Where it may not be read it is of a scanner of others.
    let none = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
    let text = match read(file) {
        Err(error) if none.contains(&error.kind()) => return Ok(()),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let list: List = serde_json::from_str(&text)
        .with_context(|| format!("{} is no list of `sksm scan`", file.display()))?;
    if list.boot == boot() {
        *lock(&KNOWN) = Known(list.hung);
    }
    Ok(())
}

/// What others may write would leave alone whoever they like.
fn read(file: &Path) -> io::Result<String> {
    const MOST: u64 = 1 << 20;
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = (OpenOptions::new().read(true).custom_flags(flags)).open(file)?;
    let status = file.metadata()?;
    // SAFETY: tells a number.
    let own = [0, unsafe { libc::geteuid() }];
    if !own.contains(&status.uid()) || !status.is_file() {
        return Err(io::Error::other("it is another user's, or no file"));
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// Leaves this process alone from now on.
pub fn add(hung: Hung) {
    lock(&KNOWN).add(hung);
}

/// Tells the next scanner.
pub fn write(file: &Path) -> Result<()> {
    let list = List {
        boot: boot(),
        hung: lock(&KNOWN).0.clone(),
    };
    Ok(state::replace(
        file,
        &(serde_json::to_string_pretty(&list)? + "\n"),
    )?)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What it is since the machine was booted.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[derive(Serialize, Deserialize)]
struct List {
    boot: String,
    hung: Vec<Hung>,
}

/// Who can make more processes of the same kind.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Owner {
    /// Of the machine itself, in whatever namespaces it has made.
    User(u32),
    /// A container: the number of its namespace of users, or of control groups.
    Container(u64),
}

impl Owner {
    /// None for the machine's own root.
    fn of(pid: u32) -> Option<Self> {
        if let Some(outermost) = foreign_users(pid) {
            // The numbers inside are many, who made it is one.
            return Some(match outermost.maker {
                0 => Owner::Container(outermost.number),
                user => Owner::User(user),
            });
        }
        let groups = number(&format!("/proc/{pid}/ns/cgroup"));
        if groups != number("/proc/self/ns/cgroup") {
            return Some(Owner::Container(groups?));
        }
        user_of(pid).filter(|user| *user != 0).map(Owner::User)
    }
}

struct Namespace {
    number: u64,
    maker: u32,
}

/// The namespace of users just below this process's own that a process is in.
fn foreign_users(pid: u32) -> Option<Namespace> {
    const NS_GET_PARENT: libc::c_ulong = 0xb702;
    const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
    /// The kernel allows no more.
    const DEEPEST: u32 = 32;
    let own = number("/proc/self/ns/user")?;
    let mut namespace = File::open(format!("/proc/{pid}/ns/user")).ok()?;
    for _ in 0..=DEEPEST {
        let this = namespace.metadata().ok()?.ino();
        if this == own {
            return None;
        }
        // SAFETY: takes nothing, and gives a new descriptor.
        let parent = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT as _) };
        if parent < 0 {
            return None;
        }
        // SAFETY: nothing else owns it.
        let parent = unsafe { File::from_raw_fd(parent) };
        if parent.metadata().ok()?.ino() == own {
            let mut maker = 0_u32;
            // SAFETY: writes a number, into ours.
            let told =
                unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID as _, &mut maker) };
            return (told == 0).then_some(Namespace {
                number: this,
                maker,
            });
        }
        namespace = parent;
    }
    None
}

fn number(file: &str) -> Option<u64> {
    fs::metadata(file).ok().map(|file| file.ino())
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Hung {
    pub pid: u32,
    pub name: String,
    /// In ticks since the machine was booted.
    started: u64,
    owner: Option<Owner>,
    /// In seconds since 1970.
    noted: u64,
}

impl Hung {
    fn of(pid: u32) -> Option<Self> {
        let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
        Some(Hung {
            pid,
            name: String::from_utf8_lossy(name.trim_ascii_end()).into_owned(),
            started: stat(pid)?.started,
            owner: Owner::of(pid),
            noted: state::now(),
        })
    }

    /// As a line.
    pub fn encode(hung: Option<&Self>) -> Result<String> {
        Ok(serde_json::to_string(&hung)? + "\n")
    }

    pub fn decode(line: &[u8]) -> Result<Option<Self>> {
        ensure!(line.len() < 4096, "too long");
        Ok(serde_json::from_slice(line)?)
    }
}

#[derive(Default)]
struct Known(Vec<Hung>);

impl Known {
    fn add(&mut self, mut hung: Hung) {
        hung.noted = state::now();
        self.0.push(hung);
        let many = self.0.len().saturating_sub(KEPT);
        self.0.drain(..many);
    }

    fn has(&self, other: &Hung) -> bool {
        let now = state::now();
        let recent = || (self.0.iter()).filter(|hung| hung.noted.saturating_add(SECONDS) > now);
        let same = |hung: &&Hung| hung.pid == other.pid && hung.started == other.started;
        let of_owner = |hung: &&Hung| other.owner.is_some() && hung.owner == other.owner;
        recent().any(|hung| same(&hung)) || recent().filter(of_owner).count() >= PATIENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hung(pid: u32, started: u64, owner: Option<Owner>) -> Hung {
        Hung {
            pid,
            name: "x".into(),
            started,
            owner,
            noted: state::now(),
        }
    }

    #[test]
    fn it_is_the_process_and_not_its_number() {
        let me = Hung::of(std::process::id()).unwrap();
        let (pid, since) = (me.pid, me.started);
        for (pid, at, right) in [
            (pid, since, true),
            (pid, since + 1, false),
            (pid + 1, since, false),
        ] {
            let known = Known(vec![hung(pid, at, None)]);
            assert_eq!(known.has(&me), right, "{pid} {at}");
        }
    }

    #[test]
    fn all_of_an_owner_are_left_alone_after_two() {
        let owner = |user| Some(Owner::User(user));
        let one = hung(1, 2, owner(1000));
        let mut known = Known::default();
        for (user, right) in [(7, false), (7, false), (1000, false), (1000, true)] {
            known.add(hung(3, user.into(), owner(user)));
            assert_eq!(known.has(&one), right, "{user}");
        }
        // The machine's root has services that have nothing to do with each other.
        let mut known = Known::default();
        (0..5).for_each(|pid| known.add(hung(pid, 0, None)));
        assert!(!known.has(&hung(9, 9, None)));
    }

    #[test]
    fn a_container_is_one_owner_whatever_users_it_has() {
        assert!(Owner::of(std::process::id()).is_none_or(|own| matches!(own, Owner::User(_))));
        let inside = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "sleep", "60"])
            .spawn();
        let Ok(mut inside) = inside else {
            return;
        };
        let pid = inside.id();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let begun = || fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"sleep\n");
        while !begun() && inside.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // SAFETY: tells a number.
        let me = unsafe { libc::geteuid() };
        let found = begun().then(|| Owner::of(pid));
        inside.kill().ok();
        inside.wait().unwrap();
        match found {
            // Not everybody may make a namespace.
            None => {}
            Some(found) if me == 0 => {
                assert!(matches!(found, Some(Owner::Container(_))), "{found:?}")
            }
            Some(found) => assert_eq!(found, Some(Owner::User(me))),
        }
    }

    #[test]
    fn the_list_has_an_end() {
        let mut known = Known::default();
        (0..2 * KEPT as u32).for_each(|pid| known.add(hung(pid, 0, None)));
        assert_eq!(known.0.len(), KEPT);
        let last = known.0.last().map(|last| last.pid);
        assert_eq!(last, Some(2 * KEPT as u32 - 1));
    }

    #[test]
    fn what_is_sent_is_what_arrives() {
        for one in [None, Some(hung(1, 2, Some(Owner::Container(5))))] {
            let line = Hung::encode(one.as_ref()).unwrap();
            let read = Hung::decode(line.as_bytes()).unwrap();
            assert_eq!(format!("{one:?}"), format!("{read:?}"));
        }
        assert!(Hung::decode(&[b' '; 10_000]).is_err());
    }

    #[test]
    fn what_others_wrote_and_what_is_old_is_not_learnt() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hung.json");
        assert!(read(&file).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
        fs::write(&file, "text").unwrap();
        assert_eq!(read(&file).unwrap(), "text");
        assert!(learn(&file).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(read(&link).is_err() && read(dir.path()).is_err());
        let mut old = hung(1, 2, None);
        let known = Known(vec![old.clone()]);
        assert!(known.has(&old));
        old.noted -= SECONDS + 1;
        let known = Known(vec![old.clone()]);
        assert!(!known.has(&old));
        let list = List {
            boot: "another".into(),
            hung: vec![hung(1, 2, None)],
        };
        fs::write(&file, serde_json::to_string(&list).unwrap()).unwrap();
        learn(&file).unwrap();
        assert!(lock(&KNOWN).0.is_empty());
    }
}
