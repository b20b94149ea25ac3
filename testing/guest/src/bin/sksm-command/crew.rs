//! Programs that hold memory for a test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;
use sksm_guest::harness::program::beside;
use sksm_guest::memory::frames;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;

use crate::command::{json, number};

/// Programs that ordinary users can run, too.
pub struct Installed(PathBuf);

impl Installed {
    pub fn new(program: &str) -> Result<Self> {
        let name = format!("sksm-command-{}-{program}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::copy(beside(program)?, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    pub fn by(&self, uid: u32) -> Command {
        let mut command = Command::new(&self.0);
        command.uid(uid).gid(uid);
        command
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

pub const USERS: [u32; 2] = [1001, 1002];

/// What programs of a test hold.
#[derive(Clone, Copy, ValueEnum)]
pub enum Holding {
    /// Pages that differ, the same in each program.
    Table,
    /// A long mapping, and many short ones.
    Long,
    /// A table, and children that have it in common, but for what they wrote.
    Fork,
    /// A table in huge pages.
    Huge,
    /// A few pages, very often.
    Often,
    /// A table, half of which is left out of dumps.
    Undumped,
    /// A table, in a process that is not dumpable.
    Hidden,
}

pub const TABLE: usize = 3000;

/// Prints the processes that hold it once they do; then for each line of standard input, until that ends, reads all of what this one
/// holds, and prints what that comes to.
pub fn hold(holding: Holding) -> Result<()> {
    let mut maps = Vec::new();
    let mut children = Vec::new();
    match holding {
        Holding::Table => maps.push(Map::filled(&table())?),
        Holding::Long => {
            // Longer than 64 MiB, with little in it.
            let long = Map::anon(40_000)?;
            long.no_huge();
            (0..40_000).step_by(10).for_each(|page| long.fill(page, 9));
            let short = Map::filled(&[8; 3000])?;
            for page in (0..3000).step_by(2) {
                short.protect_pages(page..page + 1, libc::PROT_READ)?;
            }
            maps.extend([long, short]);
        }
        Holding::Fork => {
            // Twice, so that there is something to save in what stays in common.
            let twice: Vec<u64> = (0..3000).map(|page| 1 + page % 1500).collect();
            let map = Map::filled(&twice)?;
            for child in 0..4 {
                children.push(Child::spawn(|parent| {
                    // The same in each child, and others in each.
                    for page in 0..500 {
                        map.fill(page, 100_000 + page as u64);
                    }
                    for page in 500..800 {
                        map.fill(page, 200_000 + child * 1000 + page as u64);
                    }
                    (800..900).for_each(|page| map.fill(page, 0));
                    parent.meet()
                })?);
            }
            maps.push(map);
        }
        Holding::Huge => maps.extend(Map::huge(4096, |page| 1 + page as u64 % 3000)?),
        Holding::Often => {
            let contents: Vec<u64> = (0..1200).map(|page| 1 + page % 4).collect();
            maps.push(Map::filled(&contents)?);
        }
        Holding::Undumped => {
            let map = Map::filled(&table())?;
            map.advise_pages(0..TABLE / 2, libc::MADV_DONTDUMP)?;
            maps.push(map);
        }
        Holding::Hidden => {
            maps.push(Map::filled(&table())?);
            // SAFETY: takes numbers only.
            let done = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
            ensure!(done == 0, "{}", std::io::Error::last_os_error());
        }
    }
    children.iter().try_for_each(|child| child.pause())?;
    let pids: Vec<String> = std::iter::once(std::process::id())
        .chain(children.iter().map(|child| child.pid() as u32))
        .map(|pid| pid.to_string())
        .collect();
    println!("{}", pids.join(" "));
    for line in std::io::stdin().lines() {
        line?;
        let pages = |map: &Map| (0..map.pages()).fold(0, |sum, page| mixed(sum, map.get(page, 0)));
        println!("{}", maps.iter().fold(0, |sum, map| mixed(sum, pages(map))));
    }
    Ok(())
}

/// Another value where any of those that came before is another, or in another place.
fn mixed(sum: u64, value: u64) -> u64 {
    (sum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Some of them twice.
fn table() -> Vec<u64> {
    (0..TABLE as u64).map(|page| 1 + page % 2500).collect()
}

/// Programs that hold memory until they are dropped. They are no forks of this one: with that they would have memory in
/// common, which would stay merged there.
pub struct Crew(Vec<(std::process::Child, Vec<u32>)>);

impl Crew {
    /// Each with what it holds, and its user.
    pub fn start(members: impl IntoIterator<Item = (Holding, u32)>) -> Result<Self> {
        let program = Installed::new("sksm-command")?;
        let mut crew = Self(Vec::new());
        for (holding, uid) in members {
            let name = holding.to_possible_value().context("no name")?;
            let mut command = program.by(uid);
            command.args(["--hold", name.get_name()]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            crew.0.push((command.spawn()?, Vec::new()));
        }
        for (child, pids) in &mut crew.0 {
            let mut line = String::new();
            let output = child.stdout.as_mut().context("no output")?;
            BufReader::new(output).read_line(&mut line)?;
            let numbers = line.split_whitespace().map(str::parse);
            *pids = numbers.collect::<Result<_, _>>()?;
            ensure!(!pids.is_empty(), "a program did not start");
        }
        Ok(crew)
    }

    pub fn pids(&self) -> Vec<u32> {
        self.0.iter().flat_map(|(_, pids)| pids.clone()).collect()
    }

    pub fn sksm(&self, arguments: &[&str]) -> Result<Value> {
        let pids: Vec<String> = self.pids().iter().map(u32::to_string).collect();
        on(arguments, &pids)
    }

    /// Has each program read what it holds, and tells what that comes to.
    pub fn read(&mut self) -> Result<Vec<String>> {
        let mut read = Vec::new();
        for (child, _) in &mut self.0 {
            child.stdin.as_mut().context("no input")?.write_all(b"\n")?;
            let mut line = String::new();
            let output = child.stdout.as_mut().context("no output")?;
            BufReader::new(output).read_line(&mut line)?;
            ensure!(line.ends_with('\n'), "a program ended");
            read.push(line);
        }
        Ok(read)
    }

    pub fn frames(&self) -> Result<usize> {
        Ok(frames::of(self.pids())?.len())
    }

    /// Fails unless merging these of its processes saves what was foretold.
    pub fn agrees(&self, pids: &[u32], figure: &str) -> Result<()> {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let estimate = on(&["estimate"], &pids)?;
        let foretold = number(&estimate[figure]["saved_pages"])?;
        let before = self.frames()?;
        on(&["merge"], &pids)?;
        let after = self.frames()?;
        let saved = before as f64 - after as f64;
        ensure!(saved > 1000.0, "only {saved} of {before} pages saved");
        ensure!(
            (foretold - saved).abs() <= 0.02 * saved,
            "{foretold} foretold, {saved} of {before} saved"
        );
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            // Its children end with it: they wait for it.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

pub fn on(arguments: &[&str], pids: &[String]) -> Result<Value> {
    let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
    json(&[arguments, &["--pid"], &pids].concat())
}
