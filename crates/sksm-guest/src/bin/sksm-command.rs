//! The command `sksm` on a kernel that merges: every verb, the rights that it needs, and that what `estimate` foretells is what
//! `merge` saves.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use sksm::{Kind, Process};
use sksm_guest::memory::{Map, PAGE};
use sksm_guest::pagemap::{Flags, Pagemap};
use sksm_guest::process::Child;
use sksm_guest::report::{self, Options, Test, skip, test};

/// Checks the command on a kernel that merges, one line a test; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Holds memory for a test, until standard input ends
    #[arg(long, hide = true)]
    hold: Option<Holding>,
}

const TESTS: &[Test] = &[
    test("doctor", doctor),
    test("run/status", run_ends_as_the_program),
    test("run/again", run_merges_again),
    test("stat/system", stat_of_the_system),
    test("stat/process", stat_of_a_process),
    test("top", top_shows_what_is_merged),
    test("top/domains", domains_are_the_kernels),
    test("merge/dry-run", dry_run_merges_nothing),
    test("merge/process", merge_tells_what_it_did),
    test("merge/many", more_than_one_call_takes),
    test("rights/merge", merging_needs_a_right),
    test("rights/own-estimate", own_processes_can_be_estimated),
    test("estimate/fork", estimate_of_forked),
    test("estimate/fork-children-only", estimate_of_children_only),
    test("estimate/huge-pages", estimate_of_huge_pages),
    test("estimate/many-sharers", estimate_of_many_sharers),
    test("estimate/users", estimate_of_several_users),
    test("estimate/looks-without-harm", estimate_takes_nothing_apart),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.hold {
        None => report::run(TESTS, &arguments.options),
        Some(holding) => match hold(holding) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// A file built with this program.
fn beside(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "{} was not built", path.display());
    Ok(path)
}

fn run(command: &mut Command) -> Result<Output> {
    Ok(command.stdin(Stdio::null()).output()?)
}

fn sksm(arguments: &[&str]) -> Result<Output> {
    run(Command::new(beside("sksm")?).args(arguments))
}

fn said(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

fn text(arguments: &[&str]) -> Result<String> {
    let output = sksm(arguments)?;
    ensure!(output.status.success(), "sksm {arguments:?}: {output:?}");
    Ok(said(&output.stdout))
}

fn json(arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&text(
        &[arguments, &["--json"]].concat(),
    )?)?)
}

/// Programs that ordinary users can run, too.
struct Installed(PathBuf);

impl Installed {
    fn new(program: &str) -> Result<Self> {
        let name = format!("sksm-command-{}-{program}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::copy(beside(program)?, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn by(&self, uid: u32) -> Command {
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

const USERS: [u32; 2] = [1001, 1002];

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("{value} is no number"))
}

fn sysfs(counter: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/sys/kernel/mm/sksm/{counter}"))?;
    Ok(text.trim().parse()?)
}

/// Chosen for the test; what it was comes back after it.
fn set_domain(domain: &str) -> Result<()> {
    Ok(fs::write("/sys/kernel/mm/sksm/domain", domain)?)
}

fn check<'a>(doctor: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = doctor["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|check| check["name"] == name);
    found.with_context(|| format!("no {name} in {doctor}"))
}

fn doctor() -> Result<()> {
    let report = json(&["doctor"])?;
    for name in [
        "MADV_MERGE",
        "process_madvise",
        "CAP_SYS_NICE",
        "reading processes",
    ] {
        ensure!(check(&report, name)?["state"] == "yes", "{report}");
    }
    for domain in ["user", "global"] {
        set_domain(domain)?;
        let report = json(&["doctor"])?;
        let limits = check(&report, "limits")?["detail"].as_str();
        let shown = format!("[{domain}]");
        ensure!(limits.is_some_and(|text| text.contains(&shown)), "{report}");
    }
    let program = Installed::new("sksm")?;
    let output = run(program.by(USERS[0]).args(["doctor", "--json"]))?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(check(&report, "MADV_MERGE")?["state"] == "yes", "{report}");
    ensure!(check(&report, "CAP_SYS_NICE")?["state"] == "no", "{report}");
    ensure!(report["next"].to_string().contains("as root"), "{report}");
    Ok(())
}

fn run_ends_as_the_program() -> Result<()> {
    let script = "echo out; exit 7";
    let run = ["run", "--what", "text,data,heap", "--verbose", "--"];
    let output = sksm(&[&run as &[&str], &["bash", "-c", script]].concat())?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    ensure!(output.stdout == b"out\n", "{output:?}");
    let told = said(&output.stderr);
    ensure!(told.contains("at start: merged "), "{told}");
    Ok(())
}

/// After the time and at the signal, which the preload object tells on standard error.
fn run_merges_again() -> Result<()> {
    let when = ["--after", "100ms", "--signal", "USR2"];
    let mut child = Command::new(beside("sksm")?)
        .args(["run", "--what", "data,heap", "--verbose"])
        .args(when)
        .args(["--", "sleep", "600"])
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    let mut wait_for = |what: &str| -> Result<()> {
        for line in lines.by_ref() {
            if line?.contains(what) {
                return Ok(());
            }
        }
        bail!("it never said {what:?}");
    };
    let waited = wait_for("at start: merged ").and_then(|()| wait_for("after the time: merged "));
    // SAFETY: takes numbers only; our own child, not waited for yet.
    let sent = unsafe { libc::kill(child.id() as i32, libc::SIGUSR2) };
    let waited = waited.and_then(|()| wait_for("at the signal: merged "));
    child.kill()?;
    child.wait()?;
    ensure!(sent == 0, "no signal was sent");
    waited
}

/// The value of a metric without labels.
fn metric(text: &str, name: &str) -> Result<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("no {name} in {text}"))?;
    Ok(value.parse()?)
}

fn stat_of_the_system() -> Result<()> {
    let map = Map::filled(&[5; 100])?;
    map.merge()?;
    let stat = json(&["stat"])?;
    let (open, old) = (
        text(&["stat", "--openmetrics"])?,
        text(&["stat", "--prometheus"])?,
    );
    for gauge in [
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "max_page_sharing",
    ] {
        let right = sysfs(gauge)?;
        let name = format!("sksm_{gauge}");
        ensure!(stat["sksm"][gauge] == right, "{gauge}: {stat}");
        ensure!(metric(&open, &name)? == right && metric(&old, &name)? == right);
    }
    ensure!(metric(&open, "sksm_pages_sharing")? >= 99, "{open}");
    ensure!(
        metric(&open, "sksm_calls_total")? == sysfs("calls")?,
        "{open}"
    );
    ensure!(metric(&open, "sksm_metadata_bytes")? > 0, "{open}");
    ensure!(open.ends_with("# EOF\n") && !old.contains("# EOF"));
    for kind in [
        "# TYPE sksm_calls counter",
        "# UNIT sksm_metadata_bytes bytes",
    ] {
        ensure!(open.lines().any(|line| line == kind), "no {kind} in {open}");
    }
    let kind = "# TYPE sksm_calls_total counter";
    ensure!(old.lines().any(|line| line == kind), "no {kind} in {old}");
    Ok(())
}

fn stat_of_a_process() -> Result<()> {
    let map = Map::filled(&[5; 100])?;
    let merged = || -> Result<f64> {
        let stat = json(&["stat", "--pid", &std::process::id().to_string()])?;
        number(&stat[0]["merged_bytes"])
    };
    let before = merged()?;
    map.merge()?;
    ensure!(
        merged()? == before + map.len() as f64,
        "{} bytes",
        merged()?
    );
    Ok(())
}

fn top_shows_what_is_merged() -> Result<()> {
    let map = Map::filled(&[5; 100])?;
    map.merge()?;
    let look = json(&["top"])?;
    let pages = number(&look["saved"]["sksm_bytes"])? / PAGE as f64;
    ensure!(
        pages >= 99.0 && pages == sysfs("pages_sharing")? as f64,
        "{look}"
    );
    ensure!(look["missing"].is_null(), "{look}");
    let processes = look["processes"].as_array().context("no processes")?;
    let own = processes
        .iter()
        .find(|one| one["pid"] == std::process::id());
    let own = own.with_context(|| format!("not there: {look}"))?;
    ensure!(number(&own["merged_bytes"])? >= map.len() as f64, "{own}");
    Ok(())
}

/// `/sys/kernel/mm/sksm/domain` says what processes are put together by.
fn domains_are_the_kernels() -> Result<()> {
    let crew = Crew::start([(Holding::Table, 0), (Holding::Table, USERS[0])])?;
    let looks = |domain: &str| -> Result<Vec<Value>> {
        set_domain(domain)?;
        let look = json(&["top"])?;
        ensure!(look["domain"] == domain, "{look}");
        Ok(look["domains"].as_array().context("no domains")?.clone())
    };
    let users = looks("user")?;
    let named = |domains: &[Value], name: &str| domains.iter().any(|one| one["name"] == name);
    let user = USERS[0].to_string();
    ensure!(named(&users, "root") && named(&users, &user), "{users:?}");
    let global = looks("global")?;
    ensure!(
        global.len() == 1 && named(&global, "all processes"),
        "{global:?}"
    );
    let groups = looks("cgroup")?;
    let right = fs::read_to_string("/proc/self/cgroup")?;
    let right = right.lines().find_map(|line| line.strip_prefix("0::"));
    let right = right.unwrap_or("no control group");
    ensure!(named(&groups, right), "{right} is not in {groups:?}");
    drop(crew);
    Ok(())
}

fn dry_run_merges_nothing() -> Result<()> {
    let crew = Crew::start([(Holding::Table, 0)])?;
    let before = sysfs("calls")?;
    let report = crew.sksm(&["merge", "--dry-run"])?;
    let row = &report["processes"][0];
    ensure!(number(&row["pages"])? >= TABLE as f64, "{report}");
    ensure!(
        row["merged_bytes"] == 0 && report["dry_run"] == true,
        "{report}"
    );
    ensure!(sysfs("calls")? == before, "it called the kernel");
    Ok(())
}

fn merge_tells_what_it_did() -> Result<()> {
    let crew = Crew::start([(Holding::Table, 0), (Holding::Table, 0)])?;
    let report = crew.sksm(&["merge"])?;
    for row in report["processes"].as_array().context("no processes")? {
        let merged = number(&row["merged_bytes"])?;
        ensure!(merged >= (TABLE * PAGE) as f64, "{report}");
        ensure!(row["refused"] == serde_json::json!([]), "{report}");
    }
    ensure!(
        number(&report["saved_bytes"])? > (TABLE * PAGE / 2) as f64,
        "{report}"
    );
    Ok(())
}

/// A mapping longer than what is merged at once, and more mappings than the kernel takes at once.
fn more_than_one_call_takes() -> Result<()> {
    let crew = Crew::start([(Holding::Long, 0)])?;
    let report = crew.sksm(&["merge"])?;
    let row = &report["processes"][0];
    ensure!(number(&row["mappings"])? >= 1500.0, "{report}");
    let pid = crew.pids()[0];
    let stat = json(&["stat", "--pid", &pid.to_string()])?;
    let [anonymous, merged] =
        ["anonymous_bytes", "merged_bytes"].map(|name| number(&stat[0][name]));
    let (anonymous, merged) = (anonymous?, merged?);
    ensure!(merged > 0.9 * anonymous, "{merged} of {anonymous} bytes");
    Ok(())
}

/// Of a user's own process, and of root's.
fn merging_needs_a_right() -> Result<()> {
    let program = Installed::new("sksm")?;
    for owner in [USERS[0], 0] {
        let crew = Crew::start([(Holding::Table, owner)])?;
        let pid = crew.pids()[0].to_string();
        let output = run(program.by(USERS[0]).args(["merge", "--pid", &pid]))?;
        ensure!(output.status.code() == Some(4), "of {owner}: {output:?}");
        let told = said(&output.stderr);
        let right = if owner == 0 {
            "CAP_SYS_PTRACE"
        } else {
            "CAP_SYS_NICE"
        };
        ensure!(told.contains(right), "of {owner}: {told}");
        // With one that can be done.
        let crew = Crew::start([(Holding::Table, 0)])?;
        let output = sksm(&["merge", "--pid", &crew.pids()[0].to_string(), "2147483647"])?;
        ensure!(output.status.code() == Some(5), "{output:?}");
    }
    Ok(())
}

/// An ordinary user sees no page frames, and what processes share since a fork by addresses only.
fn own_processes_can_be_estimated() -> Result<()> {
    let program = Installed::new("sksm")?;
    let crew = Crew::start([(Holding::Fork, USERS[0])])?;
    let right = crew.sksm(&["estimate"])?;
    let pids: Vec<String> = crew.pids().iter().map(u32::to_string).collect();
    let mut command = program.by(USERS[0]);
    let output = run(command.args(["estimate", "--json", "--pid"]).args(&pids))?;
    ensure!(output.status.success(), "{output:?}");
    let seen: Value = serde_json::from_slice(&output.stdout)?;
    for figure in ["pages", "saved_pages"] {
        let value = |report: &Value| number(&report["within_users"][figure]);
        let (right, seen) = (value(&right)?, value(&seen)?);
        ensure!(
            (seen - right).abs() < 0.02 * right,
            "{figure}: {seen}, root sees {right}"
        );
    }
    ensure!(number(&seen["maybe_shared_pages"])? > 0.0, "{seen}");
    ensure!(number(&right["maybe_shared_pages"])? == 0.0, "{right}");
    Ok(())
}

/// What programs of a test hold.
#[derive(Clone, Copy, ValueEnum)]
enum Holding {
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
}

const TABLE: usize = 3000;

/// Prints the processes that hold it once they do, and waits for the end of standard input.
fn hold(holding: Holding) -> Result<()> {
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
    }
    children.iter().try_for_each(|child| child.pause())?;
    let pids: Vec<String> = std::iter::once(std::process::id())
        .chain(children.iter().map(|child| child.pid() as u32))
        .map(|pid| pid.to_string())
        .collect();
    println!("{}", pids.join(" "));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Some of them twice.
fn table() -> Vec<u64> {
    (0..TABLE as u64).map(|page| 1 + page % 2500).collect()
}

/// Programs that hold memory until they are dropped. They are no forks of this one: with that they would have memory in
/// common, which would stay merged there.
struct Crew(Vec<(std::process::Child, Vec<u32>)>);

impl Crew {
    /// Each with what it holds, and its user.
    fn start(members: impl IntoIterator<Item = (Holding, u32)>) -> Result<Self> {
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

    fn pids(&self) -> Vec<u32> {
        self.0.iter().flat_map(|(_, pids)| pids.clone()).collect()
    }

    fn sksm(&self, arguments: &[&str]) -> Result<Value> {
        let pids: Vec<String> = self.pids().iter().map(u32::to_string).collect();
        on(arguments, &pids)
    }

    /// The page frames of what `sksm merge` takes, in all processes.
    fn frames(&self) -> Result<usize> {
        let mut frames = BTreeSet::new();
        for pid in self.pids() {
            let pagemap = Pagemap::of(pid as i32)?;
            for mapping in Process::open(pid)?.mappings()? {
                if !matches!(mapping.kind, Kind::Text | Kind::Data | Kind::Heap) {
                    continue;
                }
                let pages = mapping.region.len / PAGE;
                for entry in pagemap.entries(mapping.region.start, pages)? {
                    let Some(pfn) = entry.pfn().filter(|_| !entry.file_or_shared()) else {
                        continue;
                    };
                    if !frames.contains(&pfn) && !Flags::of(pfn)?.zero_page() {
                        frames.insert(pfn);
                    }
                }
            }
        }
        Ok(frames.len())
    }

    /// Fails unless merging these of its processes saves what was foretold.
    fn agrees(&self, pids: &[u32], figure: &str) -> Result<()> {
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

fn on(arguments: &[&str], pids: &[String]) -> Result<Value> {
    let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
    json(&[arguments, &["--pid"], &pids].concat())
}

fn estimate_of_forked() -> Result<()> {
    let crew = Crew::start([(Holding::Fork, 0), (Holding::Fork, 0)])?;
    crew.agrees(&crew.pids(), "within_users")
}

/// The parent has what its children have in common, and keeps it.
fn estimate_of_children_only() -> Result<()> {
    let crew = Crew::start([(Holding::Fork, 0)])?;
    crew.agrees(&crew.pids()[1..], "within_users")
}

fn estimate_of_huge_pages() -> Result<()> {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return skip("this kernel has no huge pages");
    }
    let crew = Crew::start([(Holding::Huge, 0), (Holding::Huge, 0)])?;
    crew.agrees(&crew.pids(), "within_users")
}

/// More than one page takes, as it is set, and with a limit that makes a difference of more than 2%.
fn estimate_of_many_sharers() -> Result<()> {
    for limit in [None, Some("10")] {
        if let Some(limit) = limit {
            fs::write("/sys/kernel/mm/sksm/max_page_sharing", limit)?;
        }
        let crew = Crew::start([(Holding::Often, 0), (Holding::Often, 0)])?;
        let limit = sysfs("max_page_sharing")?;
        ensure!(limit < 600, "one page takes {limit}");
        crew.agrees(&crew.pids(), "within_users")
            .with_context(|| format!("{limit} mappings a page"))?;
    }
    Ok(())
}

fn estimate_of_several_users() -> Result<()> {
    let table = |user| (Holding::Table, user);
    let users = [USERS[0], USERS[0], USERS[1], USERS[1]];
    for (domain, figure) in [("user", "within_users"), ("global", "across_users")] {
        set_domain(domain)?;
        let crew = Crew::start(users.map(table))?;
        crew.agrees(&crew.pids(), figure).context(domain)?;
    }
    Ok(())
}

fn estimate_takes_nothing_apart() -> Result<()> {
    let crew = Crew::start([(Holding::Fork, 0), (Holding::Table, 0)])?;
    crew.sksm(&["merge"])?;
    let merged = crew.frames()?;
    let estimate = crew.sksm(&["estimate"])?;
    let looked = crew.frames()?;
    ensure!(looked <= merged, "{merged} pages became {looked}");
    let left = number(&estimate["within_users"]["saved_pages"])?;
    ensure!(
        left < 0.02 * merged as f64,
        "{left} of {merged} could be saved still"
    );
    Ok(())
}
