//! Which processes are meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use clap::ArgGroup;
use regex_lite::Regex;
use sksm::{Error, Process};

use crate::domain::Users;
use crate::hung;

/// Processes by number, name, control group or user.
#[derive(clap::Args, Clone, Default)]
#[group(skip)]
pub struct Targets {
    /// These processes, as in 12 34 or 12,34
    #[arg(value_name = "PID", value_delimiter = ',')]
    pids: Vec<u32>,
    /// The same, as an option
    #[arg(long, short, value_name = "PID", num_args = 1.., value_delimiter = ',')]
    pid: Vec<u32>,
    /// Processes with this name: a regular expression for the whole of it, as in python3 or 'qemu-.*'
    ///
    /// The name is that of /proc/PID/comm, of the executable, or the first word of the command line. May be given more than once.
    /// With --cgroup and --user, processes that fit all of them.
    #[arg(long, value_name = "REGEX")]
    name: Vec<Whole>,
    /// Processes of this control group and those below it: a path, or a unit of systemd, as in nginx.service
    #[arg(long, value_name = "PATH|UNIT")]
    cgroup: Vec<PathBuf>,
    /// Processes of this user, by name or number
    #[arg(long, value_name = "USER")]
    user: Vec<String>,
    /// All processes
    #[arg(long)]
    all: bool,
    /// But not these, by number or name
    #[arg(long, value_name = "PID|REGEX", value_delimiter = ',')]
    exclude: Vec<Whole>,
}

/// Requires that somebody is chosen.
pub fn required() -> ArgGroup {
    ArgGroup::new("processes")
        .required(true)
        .multiple(true)
        .args(["pids", "pid", "name", "cgroup", "user", "all"])
}

/// A regular expression for the whole of a name.
#[derive(Clone)]
struct Whole {
    given: String,
    whole: Regex,
}

impl FromStr for Whole {
    type Err = regex_lite::Error;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        // By itself first: what it is wrapped in is no business of the user's.
        Regex::new(given)?;
        Ok(Whole {
            given: given.into(),
            whole: Regex::new(&format!("^(?:{given})$"))?,
        })
    }
}

/// Which processes were chosen.
pub struct Chosen {
    /// In order, without this process itself.
    pub pids: Vec<u32>,
    /// Those that were given by their numbers.
    numbers: BTreeSet<u32>,
    /// Whether the others were named, and not merely all that there are.
    named: bool,
}

impl Chosen {
    /// Whether it is no success without this process, where that was refused, or is not there.
    pub fn must(&self, pid: u32, gone: bool) -> bool {
        self.numbers.contains(&pid) || self.named && !gone
    }
}

impl Targets {
    /// Whether all processes are meant, without exception.
    pub fn everything(&self) -> bool {
        let filters = [self.name.len(), self.cgroup.len(), self.user.len()];
        self.all && self.exclude.is_empty() && filters == [0; 3]
    }

    /// Whether nobody is.
    pub fn nobody(&self) -> bool {
        let numbers = self.pids.len() + self.pid.len();
        numbers == 0 && !self.all && !self.filtered() && self.exclude.is_empty()
    }

    fn filtered(&self) -> bool {
        !self.name.is_empty() || !self.cgroup.is_empty() || !self.user.is_empty()
    }

    pub fn choose(&self) -> Result<Chosen> {
        let numbers: BTreeSet<u32> = self.pids.iter().chain(&self.pid).copied().collect();
        let mut pids = numbers.clone();
        // All but those, where nothing else is said.
        if self.all || self.filtered() || numbers.is_empty() {
            pids.extend(self.fitting()?);
        }
        pids.retain(|pid| !self.excluded(*pid));
        pids.remove(&std::process::id());
        if pids.is_empty() {
            bail!("{}", self.nobody_fits());
        }
        // All of them wrong: nothing is to be looked at, and the first tells why.
        if pids.iter().all(|pid| numbers.contains(pid)) {
            let missing: Vec<_> = pids.iter().map_while(|pid| missing(*pid)).collect();
            if let Some(first) = missing.first().filter(|_| missing.len() == pids.len()) {
                bail!("{first}");
            }
        }
        Ok(Chosen {
            pids: pids.into_iter().collect(),
            numbers,
            named: !self.name.is_empty() || !self.cgroup.is_empty() || !self.user.is_empty(),
        })
    }

    /// All that fit by name, control group and user.
    fn fitting(&self) -> Result<BTreeSet<u32>> {
        let users = Users::read();
        let wanted: Vec<u32> = (self.user.iter())
            .map(|user| {
                users
                    .number(user)
                    .with_context(|| format!("there is no user {user}"))
            })
            .collect::<Result<_>>()?;
        let mut inside = BTreeSet::new();
        for path in &self.cgroup {
            for group in groups(path, &mounted())? {
                members(&group, &mut inside)?;
            }
        }
        let fits = |pid: &u32| {
            (self.cgroup.is_empty() || inside.contains(pid))
                && (wanted.is_empty() || user_of(*pid).is_some_and(|user| wanted.contains(&user)))
                && (self.name.is_empty() || any(&self.name, &names_of(*pid)))
        };
        Ok(all()?.into_iter().filter(fits).collect())
    }

    fn excluded(&self, pid: u32) -> bool {
        let number = pid.to_string();
        self.exclude.iter().any(|one| one.given == number)
            || !self.exclude.is_empty() && any(&self.exclude, &names_of(pid))
    }

    /// In words; with names that merely begin like the one that was asked for, as people know them from `pgrep`.
    fn nobody_fits(&self) -> String {
        let part = |name: &Whole| Regex::new(&name.given).ok();
        let parts: Vec<Regex> = self.name.iter().filter_map(part).collect();
        let mut near: BTreeMap<String, usize> = BTreeMap::new();
        for pid in all().unwrap_or_default() {
            let name = name_of(pid);
            if pid != std::process::id() && parts.iter().any(|part| part.is_match(&name)) {
                *near.entry(name).or_default() += 1;
            }
        }
        let Some(name) = near.keys().next() else {
            return "no process fits".into();
        };
        let all: Vec<&str> = near.keys().take(5).map(String::as_str).collect();
        format!(
            "no process fits: names are compared as a whole, and there is {}; for all of them: --name '.*{}.*'",
            all.join(", "),
            self.name.first().map_or(name, |name| &name.given)
        )
    }
}

fn any(wanted: &[Whole], names: &[String]) -> bool {
    (wanted.iter()).any(|one| names.iter().any(|name| one.whole.is_match(name)))
}

/// Why there is no process of this number that has memory, in words; none if there is.
pub fn missing(pid: u32) -> Option<String> {
    match Process::open(pid) {
        Err(Error::Gone { .. }) => Some(format!("there is no process {pid}")),
        Err(error @ (Error::Thread { .. } | Error::KernelThread { .. })) => Some(error.to_string()),
        _ if zombie(pid) => Some(format!(
            "process {pid} has exited, and has no memory any more"
        )),
        _ => None,
    }
}

/// Nobody has waited for it yet.
fn zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state == "Z")
}

pub struct Stat {
    state: String,
    flags: u32,
    /// In ticks since the machine was booted; no exec changes it.
    pub started: u64,
}

/// What /proc/PID/stat tells, which is asked of the kernel alone.
pub fn stat(pid: u32) -> Option<Stat> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything.
    let after = stat.rsplit(|byte| *byte == b')').next()?;
    let mut fields = std::str::from_utf8(after).ok()?.split_whitespace();
    let state = fields.next()?.to_owned();
    // The 9th and the 22nd in proc(5).
    let flags = fields.nth(5)?.parse().ok()?;
    let started = fields.nth(12)?.parse().ok()?;
    Some(Stat {
        state,
        flags,
        started,
    })
}

/// The real user, who counts for merging as well.
pub fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The processes there are, kernel threads left out.
pub fn all() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| is_program(*pid))
        .collect())
}

/// Kernel threads are none, nor is what has ended. Not by the command line, which is memory of the process.
fn is_program(pid: u32) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    stat(pid).is_some_and(|stat| stat.flags & PF_KTHREAD == 0 && stat.state != "Z")
}

/// What a process is called: all of it, where the kernel has cut it.
pub fn name_of(pid: u32) -> String {
    let Ok(comm) = fs::read(format!("/proc/{pid}/comm")) else {
        return "?".into();
    };
    let name = name_in(&comm);
    match comm.len() > CUT {
        true => full(&name, &other_names(pid)).unwrap_or(name),
        false => name,
    }
}

/// All that it may be called: as the kernel does, in full, by its executable and by its command line.
fn names_of(pid: u32) -> Vec<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name_in(&comm);
    // Of a script that is the second word.
    let full = full(&name, &other_names(pid)).filter(|_| comm.len() > CUT);
    let called = words(pid).into_iter().next();
    let names = executable(pid).into_iter().chain(called).chain(full);
    names
        .chain([name])
        .filter(|name| !name.is_empty())
        .collect()
}

/// So many bytes of a name the kernel keeps.
const CUT: usize = 15;

/// The first of these names that the kernel would cut to this one.
fn full(name: &str, others: &[String]) -> Option<String> {
    let found = others.iter().find(|other| other.starts_with(name));
    found.filter(|_| !name.is_empty()).cloned()
}

/// The names of the files in its command line and of its executable, those first that name it in any case.
fn other_names(pid: u32) -> Vec<String> {
    let names = executable(pid).into_iter().chain(words(pid));
    names.filter(|name| !name.is_empty()).collect()
}

/// None for those who may not see it.
fn executable(pid: u32) -> Option<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let exe = exe.as_os_str().as_bytes();
    Some(file_name(exe.strip_suffix(b" (deleted)").unwrap_or(exe)))
}

/// The first words of the command line, as files. They are memory of the process.
fn words(pid: u32) -> Vec<String> {
    if hung::is_known(pid) {
        return Vec::new();
    }
    hung::reads(pid);
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).take(8);
    words.map(file_name).collect()
}

fn file_name(path: &[u8]) -> String {
    let name = path.rsplit(|byte| *byte == b'/').next();
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
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

/// Where control groups are mounted here.
fn mounted() -> Vec<PathBuf> {
    hierarchies(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

/// A path as it is, or below where a hierarchy is mounted, as /proc/PID/cgroup shows it; or all groups of a unit's name.
fn groups(path: &Path, mounted: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let is_group = |path: &PathBuf| path.join("cgroup.procs").is_file();
    let relative = path.strip_prefix("/").unwrap_or(path);
    let below = mounted.iter().map(|at| at.join(relative));
    if let Some(group) = std::iter::once(path.to_owned()).chain(below).find(is_group) {
        return Ok(vec![group]);
    }
    if path.components().count() > 1 || path.is_absolute() {
        bail!("{} is no control group", path.display());
    }
    let name = path.to_string_lossy();
    let service = format!("{name}.service");
    for name in [&*name, &service] {
        for root in mounted {
            let units = below_with_name(root, name);
            if !units.is_empty() {
                return Ok(units);
            }
        }
    }
    bail!(
        "{name} is no control group, and no unit of that name has processes: see `systemctl status {name}`"
    )
}

/// The groups of this name, which are not within each other.
fn below_with_name(root: &Path, name: &str) -> Vec<PathBuf> {
    let (mut found, mut rest) = (Vec::new(), groups_below(root));
    while let Some(group) = rest.pop() {
        match group.file_name().is_some_and(|file| file == name) {
            true => found.push(group),
            false => rest.extend(groups_below(&group)),
        }
    }
    found
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
    fn names_are_compared_as_a_whole() {
        let names = ["ssh-agent".to_owned(), "x".into()];
        let fits = |regex: &str| any(&[regex.parse().unwrap()], &names);
        assert!(
            fits("ssh-agent") && fits("ssh.*") && fits("a|x|b") && !fits("ssh") && !fits("agent")
        );
        assert!("(".parse::<Whole>().is_err() && "a)|(b".parse::<Whole>().is_err());
    }

    #[test]
    fn what_the_kernel_cut_is_completed() {
        let others = ["python3.11", "python3", "a-long-name-of-a-script"].map(str::to_owned);
        let full = |name| full(name, &others);
        assert_eq!(
            full("a-long-name-of-").as_deref(),
            Some("a-long-name-of-a-script")
        );
        assert_eq!(full("another-name-th"), None);
        assert_eq!(full(""), None);
    }

    #[test]
    fn units_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "system.slice/nginx.service/below",
            "user.slice/a/nginx.service",
            "user.slice/nginx",
        ] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let mounted = [dir.path().to_owned()];
        let found = |name: &str| {
            let mut found = groups(Path::new(name), &mounted).unwrap();
            found.sort();
            found
        };
        let units = ["system.slice/nginx.service", "user.slice/a/nginx.service"];
        assert_eq!(
            found("nginx.service"),
            units.map(|unit| dir.path().join(unit))
        );
        fs::remove_dir(dir.path().join("user.slice/nginx")).unwrap();
        assert_eq!(found("nginx"), units.map(|unit| dir.path().join(unit)));
        let error = groups(Path::new("apache2"), &mounted)
            .unwrap_err()
            .to_string();
        assert!(error.contains("systemctl status apache2"), "{error}");
        groups(Path::new("/nginx.service"), &mounted).unwrap_err();
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
