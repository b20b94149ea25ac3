//! The guide's figures of what merges: its table says what these tests measure, to a tenth. And its way from
//! ksmd to the scanner.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sksm_guest::harness::program::beside;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::sysfs::KSM;
use sksm_guest::memory::frames;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child as Forked, Link};
use sksm_guest::skip::skip;

use crate::command::{run, said};
use crate::crew::on;

use crate::scan;

pub const TESTS: &[Test] = &[
    test("guide/forked", || row("forked, then built", FORKED)),
    test("guide/forked-frozen", || {
        row("the same, `--freeze`", FROZEN)
    }),
    test("guide/started", || row("started one by one", STARTED)),
    test("guide/not-randomised", || {
        row("the same, `setarch -R`", NOT_RANDOMISED)
    }),
    test("guide/buffer", || {
        row("a buffer, started one by one", BUFFER)
    }),
    test("scan/as-in-the-guide", from_ksmd_to_the_scanner),
];

const GUIDE: &str = include_str!("../../../../../docs/guide.md");
pub const PYTHON: &str = include_str!("../../../../../examples/workers/workers.py");

/// Started once, and what it is called with.
const FORKED: (usize, &[&str]) = (1, &["python3", "workers.py", "--fork", "4", "table"]);
const FROZEN: (usize, &[&str]) = (
    1,
    &["python3", "workers.py", "--fork", "4", "--freeze", "table"],
);
const STARTED: (usize, &[&str]) = (4, &["python3", "workers.py", "table"]);
const NOT_RANDOMISED: (usize, &[&str]) = (4, &["setarch", "-R", "python3", "workers.py", "table"]);
const BUFFER: (usize, &[&str]) = (4, &["python3", "workers.py", "buffer"]);

/// A row of the guide's, or what was measured for it.
#[derive(Debug)]
pub struct Row {
    /// Private memory before the merge.
    pub mib: f64,
    /// Per cent saved by the merge, left after a thousand and after ten thousand requests to each worker, and saved when they
    /// are merged again.
    pub saved: Vec<f64>,
}

fn told(name: &str) -> Result<Row> {
    let start = format!("| {name} |");
    let line = GUIDE.lines().find(|line| line.starts_with(&start));
    let line = line.with_context(|| format!("the guide has no row {name:?}"))?;
    let cells = |unit| {
        let cells = line.split('|');
        let numbers = cells.filter_map(move |cell| cell.trim().strip_suffix(unit));
        numbers.map(str::parse).collect::<Result<Vec<f64>, _>>()
    };
    let mib = cells(" MiB")?;
    let [mib] = mib[..] else {
        bail!("the guide says of memory: {mib:?}");
    };
    let saved = cells(" %")?;
    Ok(Row { mib, saved })
}

/// To a tenth.
fn agrees(told: &Row, measured: &Row) -> bool {
    let near = |(told, measured): (&f64, &f64)| (told - measured).abs() <= told / 10.0;
    near((&told.mib, &measured.mib))
        && told.saved.len() == measured.saved.len()
        && told.saved.iter().zip(&measured.saved).all(near)
}

fn row(name: &str, (count, words): (usize, &[&str])) -> Result<()> {
    let told = told(name)?;
    randomised()?;
    let version = Command::new("/usr/bin/python3").arg("--version").output();
    let version = version.map_or(String::new(), |output| said(&output.stdout));
    if !version.starts_with("Python 3.11.") {
        return skip(format!(
            "the guide's figures are of Python 3.11, and this is {version:?}"
        ));
    }
    let workers = Workers::start(count, words, ("workers.py", PYTHON))?;
    let measured = workers.measure()?;
    eprintln!("{name}: {measured:.1?}");
    ensure!(
        agrees(&told, &measured),
        "the guide says {told:.0?}, and it is {measured:.1?}"
    );
    Ok(())
}

/// The guide's figures are of kernels where programs are at other addresses each.
pub fn randomised() -> Result<()> {
    match fs::read_to_string("/proc/cpuinfo")?.contains("User Mode Linux") {
        true => skip("this kernel does not randomise addresses"),
        false => Ok(()),
    }
}

/// Worker processes that the test started, each with those that it forked.
pub struct Workers(Vec<(Child, BufReader<ChildStdout>)>);

impl Workers {
    /// Where there is a file of this name and content.
    pub fn start(count: usize, words: &[&str], (name, content): (&str, &str)) -> Result<Self> {
        let dir = std::env::temp_dir();
        fs::write(dir.join(name), content)?;
        let mut workers = Self(Vec::new());
        for _ in 0..count {
            let mut child = Command::new(words[0])
                .args(&words[1..])
                .current_dir(&dir)
                .env("PATH", "/usr/bin:/bin")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let output = child.stdout.take().context("no output")?;
            workers.0.push((child, BufReader::new(output)));
        }
        workers.hear("ready")?;
        Ok(workers)
    }

    fn hear(&mut self, what: &str) -> Result<()> {
        for (_, output) in &mut self.0 {
            let mut line = String::new();
            output.read_line(&mut line)?;
            ensure!(line.trim_end() == what, "a worker says {line:?}");
        }
        Ok(())
    }

    /// Has each serve so many requests.
    pub fn serve(&mut self, requests: usize) -> Result<()> {
        for (child, _) in &mut self.0 {
            writeln!(child.stdin.as_ref().context("no input")?, "{requests}")?;
        }
        self.hear("served")
    }

    /// How many frames all of them have together.
    pub fn frames(&self) -> Result<usize> {
        Ok(frames::of(self.pids()?)?.len())
    }

    /// Takes every page of what the options name.
    pub fn merge(&self, options: &[&str]) -> Result<()> {
        let names: Vec<String> = self.pids()?.iter().map(u32::to_string).collect();
        on(&[&["merge", "--everything"], options].concat(), &names)?;
        Ok(())
    }

    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids: Vec<u32> = self.0.iter().map(|(child, _)| child.id()).collect();
        for at in 0..pids.len() {
            let pid = pids[at];
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            for child in children.split_whitespace() {
                pids.push(child.parse()?);
            }
        }
        Ok(pids)
    }

    /// As the guide's columns have it.
    pub fn measure(mut self) -> Result<Row> {
        let pids = self.pids()?;
        let built = self.frames()? as f64;
        let saved = |workers: &Self| -> Result<f64> {
            Ok(100.0 * (1.0 - workers.frames()? as f64 / built))
        };
        self.merge(&[])?;
        let mut shares = vec![saved(&self)?];
        for requests in [1_000, 9_000] {
            self.serve(requests)?;
            shares.push(saved(&self)?);
        }
        self.merge(&[])?;
        shares.push(saved(&self)?);
        let all: BTreeSet<u32> = self.pids()?.into_iter().collect();
        ensure!(all == pids.into_iter().collect(), "a worker has ended");
        Ok(Row {
            mib: built / 256.0,
            saved: shares,
        })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            // Those that it forked end with their input.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// The commands of a section's first example.
fn commands(heading: &str) -> Result<Vec<&'static str>> {
    let section = GUIDE.split(heading).nth(1);
    let example = section.and_then(|section| section.split("```console\n").nth(1));
    let example = example.and_then(|example| example.split("```").next());
    let lines = example.context("the guide has no such example")?.lines();
    Ok(lines.filter_map(|line| line.strip_prefix("$ ")).collect())
}

/// Processes stand for machines: QEMU's name, memory that is open to KSM, a control group for each.
fn from_ksmd_to_the_scanner() -> Result<()> {
    const PAGES: usize = 600;
    let slice = Cgroup::named("machine.slice")?;
    let groups: Vec<Cgroup> = ["one", "two"]
        .iter()
        .map(|name| slice.inner(name))
        .collect::<Result<_>>()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    // What ksmd merges before it is stopped stays merged: only these can be nobody's but the scanner's.
    let later = Map::anon(PAGES)?;
    later.no_huge();
    let machine = |group: &Cgroup| {
        let machine = Forked::spawn(|parent: &Link| {
            group.enter()?;
            fs::write("/proc/self/comm", "qemu-system-x86")?;
            scan::open_to_ksm(&map)?;
            scan::open_to_ksm(&later)?;
            scan::filled(&map)?;
            parent.meet()?;
            scan::filled(&later)?;
            parent.meet()
        })?;
        machine.pause()?;
        Ok(machine)
    };
    let machines: Vec<Forked> = groups.iter().map(machine).collect::<Result<_>>()?;
    KSM.write("run", 1)?;
    let programs = beside("sksm")?;
    let programs = programs.parent().context("no directory")?.display();
    let commands = commands("\n## My VMs\n")?;
    ensure!(commands.len() == 5, "not five: {commands:?}");
    let mut scanner = None;
    for command in commands {
        if command == "systemctl enable --now sksm-scan" {
            // There is no systemd here.
            scanner = Some(scan::start(&[])?);
            continue;
        }
        let mut shell = Command::new("/bin/sh");
        let path = format!("{programs}:/usr/bin:/bin");
        let output = run(shell.args(["-c", command]).env("PATH", path))?;
        ensure!(output.status.success(), "{command}: {output:?}");
    }
    let mut scanner = scanner.context("the guide starts no scanner")?;
    ensure!(KSM.number("run")? == 0, "ksmd runs still");
    for machine in &machines {
        machine.go()?;
        machine.pause()?;
    }
    scanner.until(|| {
        let both = [&map, &later].map(|map| {
            let [one, two] = [&machines[0], &machines[1]].map(|machine| scan::frames(machine, map));
            Ok(scan::shared(&one?, &two?) == PAGES)
        });
        let [before, after]: [Result<bool>; 2] = both;
        Ok(before? && after?)
    })?;
    scanner.end()?;
    fs::write("/sys/kernel/mm/sksm/unmerge", "1")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row can be read, and what is off in any column is found.
    #[test]
    fn what_the_guide_says_is_compared() {
        for name in [
            "forked, then built",
            "the same, `--freeze`",
            "started one by one",
            "the same, `setarch -R`",
            "a buffer, started one by one",
        ] {
            let row = told(name).unwrap();
            assert_eq!(row.saved.len(), 4, "{name}");
            let off = |of_mib: f64, of_saved: f64| Row {
                mib: row.mib * of_mib,
                saved: row.saved.iter().map(|share| share * of_saved).collect(),
            };
            assert!(agrees(&row, &off(0.91, 1.09)));
            assert!(!agrees(&row, &off(1.11, 1.0)));
            assert!(!agrees(&row, &off(1.0, 0.89)));
        }
        assert!(told("no such row").is_err());
    }
}
