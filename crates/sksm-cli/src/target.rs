//! Which processes are meant.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
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
            members(&group(path)?, &mut pids)?;
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
        // A kernel thread has no program.
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok() || !kernel_thread(*pid))
        .collect())
}

fn kernel_thread(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
}

/// As shown in tables.
pub fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".into(), |name| name.trim().into())
}

/// A path below the mounted hierarchy, or as /proc/PID/cgroup shows it.
fn group(path: &Path) -> Result<PathBuf> {
    let below = Path::new("/sys/fs/cgroup").join(path.strip_prefix("/").unwrap_or(path));
    [path.to_owned(), below]
        .into_iter()
        .find(|path| path.join("cgroup.procs").is_file())
        .with_context(|| format!("{} is no control group", path.display()))
}

fn members(group: &Path, pids: &mut BTreeSet<u32>) -> Result<()> {
    let file = group.join("cgroup.procs");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            members(&entry.path(), pids)?;
        }
    }
    Ok(())
}
