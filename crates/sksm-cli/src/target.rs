//! Which processes are meant.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use regex_lite::Regex;

/// Processes by number, control group or name.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
pub struct Targets {
    /// This process; may be given more than once
    #[arg(long, short, value_name = "PID", num_args = 1..)]
    pid: Vec<u32>,
    /// All processes of this control group and those below it
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// All processes whose name, as in /proc/PID/comm, matches
    #[arg(long, value_name = "REGEX")]
    name: Option<Regex>,
    /// All processes
    #[arg(long)]
    all: bool,
}

impl Targets {
    /// Their numbers, without this process itself.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids: BTreeSet<u32> = self.pid.iter().copied().collect();
        if let Some(path) = &self.cgroup {
            let mut all = BTreeSet::new();
            members(&group(path)?, &mut all)?;
            // The root group has those of the kernel, too.
            pids.extend(all.into_iter().filter(|pid| is_program(*pid)));
        }
        if self.all || self.name.is_some() {
            for pid in all()? {
                let wanted = |name: &Regex| name.is_match(&name_of(pid));
                if self.all || self.name.as_ref().is_some_and(wanted) {
                    pids.insert(pid);
                }
            }
        }
        pids.remove(&std::process::id());
        if pids.is_empty() {
            bail!("no process fits");
        }
        Ok(pids.into_iter().collect())
    }
}

/// The processes there are, kernel threads left out.
pub fn all() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| is_program(*pid))
        .collect())
}

/// Kernel threads are none, and have no command line; nor has a program that took its own away, or one that has ended.
fn is_program(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline"));
    line.is_ok_and(|line| !line.is_empty()) || fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

pub fn name_of(pid: u32) -> String {
    fs::read(format!("/proc/{pid}/comm")).map_or_else(|_| "?".into(), |name| name_in(&name))
}

/// About how much private memory a process has, to show progress by.
pub const PRIVATE: &str = "RssAnon:";

/// What the process's status says of its memory; 0 if that cannot be told.
pub fn bytes_of(pid: u32, field: &str) -> u64 {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The kernel cuts names after 15 bytes, in the middle of a letter if need be: what is left of that is no part of the name.
fn name_in(comm: &[u8]) -> String {
    let name = comm.strip_suffix(b"\n").unwrap_or(comm);
    match std::str::from_utf8(name) {
        Err(error) if error.error_len().is_none() => {
            String::from_utf8_lossy(name.get(..error.valid_up_to()).unwrap_or_default())
        }
        _ => String::from_utf8_lossy(name),
    }
    .into_owned()
}

/// A path as it is, or below where a hierarchy is mounted, as /proc/PID/cgroup shows it.
fn group(path: &Path) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let relative = path.strip_prefix("/").unwrap_or(path);
    let below = hierarchies(&mounts).into_iter().map(|at| at.join(relative));
    std::iter::once(path.to_owned())
        .chain(below)
        .find(|path| path.join("cgroup.procs").is_file())
        .with_context(|| format!("{} is no control group", path.display()))
}

/// Where control groups are mounted, the unified hierarchy first.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let of_type = |wanted: &'static str| {
        mounts.lines().filter_map(move |line| {
            let mut words = line.split(' ').skip(1);
            let at = words.next()?;
            (words.next()? == wanted).then(|| PathBuf::from(at))
        })
    };
    of_type("cgroup2").chain(of_type("cgroup")).collect()
}

/// Adds the processes of this group and those below it. A group below may vanish meanwhile, or be a threaded one, whose
/// processes the group above lists.
fn members(group: &Path, pids: &mut BTreeSet<u32>) -> Result<()> {
    let file = group.join("cgroup.procs");
    let text = fs::read_to_string(&file).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => anyhow!(
            "{} is a threaded control group: name the group above it that is none",
            group.display()
        ),
        _ => anyhow!(error).context(format!("cannot read {}", file.display())),
    })?;
    add(&text, pids);
    let mut below = groups_below(group);
    while let Some(group) = below.pop() {
        if let Ok(text) = fs::read_to_string(group.join("cgroup.procs")) {
            add(&text, pids);
        }
        below.extend(groups_below(&group));
    }
    Ok(())
}

fn add(text: &str, pids: &mut BTreeSet<u32>) {
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
}

fn groups_below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_the_kernel_cuts_them() {
        assert_eq!(name_in(b"sksm\n"), "sksm");
        assert_eq!(name_in("größe\n".as_bytes()), "größe");
        // After the first byte of a letter.
        assert_eq!(name_in(b"gr\xc3\n"), "gr");
        // Of what was never text as much as can be shown.
        assert_eq!(name_in(b"a\xffb\n"), "a\u{fffd}b");
        assert_eq!(name_in(b" a\nb \n"), " a\nb ");
    }

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let mounts = "\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";
        let found = hierarchies(mounts);
        let right = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory"];
        assert_eq!(found, right.map(PathBuf::from));
        assert!(hierarchies("proc /proc proc rw 0 0\n\n").is_empty());
    }

    /// What cannot be read below does not matter.
    #[test]
    fn groups_below_may_go() {
        let dir = tempfile::tempdir().unwrap();
        let group = |path: &str, procs: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), procs).unwrap();
        };
        group("", "1\n");
        group("a", "2\n3\n");
        group("gone/b", "4\n");
        // As one that has gone, or is threaded.
        fs::create_dir(dir.path().join("gone/cgroup.procs")).unwrap();
        let mut pids = BTreeSet::new();
        members(dir.path(), &mut pids).unwrap();
        assert_eq!(pids.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
        members(&dir.path().join("gone"), &mut BTreeSet::new()).unwrap_err();
    }
}
