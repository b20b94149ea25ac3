//! The command `sksm` on a kernel that merges: every verb, the rights that it needs, and that what `estimate` foretells is what
//! `merge` saves.

mod arrays;
mod command;
mod crew;
mod domains;
mod estimate;
mod guide;
mod moving;
mod passed;
mod scan;
mod swapped;
mod undecided;
mod undo;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::Value;
use sksm_guest::harness::program::beside;
use sksm_guest::harness::report::{self, Options, Test, test};
use sksm_guest::memory::map::Map;
use sksm_guest::page::PAGE;

use command::{check, json, number, run, said, set_domain, sksm, sysfs, text};
use crew::{Crew, Holding, Installed, TABLE, USERS, hold};

/// Checks the command on a kernel that merges, one line a test; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Holds memory for a test, until standard input ends
    #[arg(long, hide = true)]
    hold: Option<Holding>,
    /// Asks whether the kernel merges, with no descriptor left, for a test
    #[arg(long, hide = true)]
    ask_without_descriptors: bool,
}

const TESTS: &[Test] = &[
    test("doctor", doctor),
    test("run/status", run_ends_as_the_program),
    test("run/again", run_merges_again),
    test("run/ksm", run_for_ksm),
    test("stat/system", stat_of_the_system),
    test("stat/process", stat_of_a_process),
    test("top", top_shows_what_is_merged),
    test("domains/top", domains::in_top),
    test("domains/marks", domains::marks),
    test("domains/doctor", domains::in_doctor),
    test("merge/dry-run", dry_run_merges_nothing),
    test("merge/process", merge_tells_what_it_did),
    test("merge/many", more_than_one_call_takes),
    test("merge/twins", nothing_is_published_for_nothing),
    test("rights/merge", merging_needs_a_right),
    test("merge/left-out-of-dumps", passed::left_out_of_dumps),
    test("merge/not-dumpable", passed::not_dumpable),
    test("merge/no-domain", passed::no_domain),
    test("unmerge/processes", undo::of_processes),
    test("unmerge/machine", undo::of_the_machine),
    test("rights/unmerge", undo::needs_a_right),
    test("rights/own-estimate", estimate::own_processes),
    test("estimate/fork", estimate::forked),
    test("estimate/fork-children-only", estimate::children_only),
    test("estimate/huge-pages", estimate::huge_pages),
    test("estimate/many-sharers", estimate::many_sharers),
    test("estimate/users", estimate::several_users),
    test("estimate/control-groups", estimate::control_groups),
    test("estimate/nodes", estimate::nodes),
    test("estimate/looks-without-harm", estimate::takes_nothing_apart),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.hold {
        _ if arguments.ask_without_descriptors => undecided::ask_without_descriptors(),
        Some(holding) => hold(holding),
        None => {
            return report::run(
                &[
                    TESTS,
                    swapped::TESTS,
                    scan::TESTS,
                    guide::TESTS,
                    moving::TESTS,
                    arrays::TESTS,
                    undecided::TESTS,
                ]
                .concat(),
                &arguments.options,
            );
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
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
    for domain in ["cgroup", "user", "global", "none"] {
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
    let when = ["--after", "100ms", "--signal"];
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
    let sent = unsafe { libc::kill(child.id() as i32, libc::SIGRTMIN() + 12) };
    let waited = waited.and_then(|()| wait_for("at the signal: merged "));
    child.kill()?;
    child.wait()?;
    ensure!(sent == 0, "no signal was sent");
    waited
}

/// Two programs that are started for the scanner share after a few of its rounds.
fn run_for_ksm() -> Result<()> {
    let ksm = |name: &str| format!("/sys/kernel/mm/ksm/{name}");
    let get = |name: &str| -> Result<u64> { Ok(fs::read_to_string(ksm(name))?.trim().parse()?) };
    let mut programs = Vec::new();
    for _ in 0..2 {
        let mut program = Command::new(beside("sksm")?)
            .args(["run", "--ksm", "--quiet"])
            .arg(beside("sksm-command")?)
            .args(["--hold", "table"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = program.stdout.take().context("no output")?;
        BufReader::new(output).read_line(&mut String::new())?;
        programs.push(program);
    }
    fs::write(ksm("pages_to_scan"), "10000")?;
    fs::write(ksm("sleep_millisecs"), "1")?;
    fs::write(ksm("run"), "1")?;
    let start = get("full_scans")?;
    while get("full_scans")? < start + 10 && get("pages_sharing")? < TABLE as u64 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let sharing = get("pages_sharing")?;
    fs::write(ksm("run"), "2")?;
    for mut program in programs {
        drop(program.stdin.take());
        program.wait()?;
    }
    ensure!(sharing >= TABLE as u64, "KSM saves {sharing} pages");
    Ok(())
}

/// The value of a metric without labels.
fn metric(text: &str, name: &str) -> Result<i64> {
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
        "pages_asleep",
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
    let profit = sysfs("general_profit")?;
    ensure!(
        metric(&open, "sksm_general_profit_bytes")? == profit,
        "{open}"
    );
    ensure!(stat["sksm"]["general_profit"] == profit, "{stat}");
    for counter in ["pages_refused", "pages_swapped", "pages_swapped_in"] {
        let metric = metric(&open, &format!("sksm_{counter}_total"))?;
        ensure!(metric == sysfs(counter)?, "{counter}: {open}");
    }
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

/// Of 100 equal pages one is published; and of what nobody else has the profit is negative.
fn stat_of_a_process() -> Result<()> {
    let (twins, single) = (Map::filled(&[5; 100])?, Map::filled(&[6, 7])?);
    let pid = std::process::id().to_string();
    let names = [
        "merged_bytes",
        "sksm_merged_pages",
        "sksm_published_pages",
        "profit_bytes",
    ];
    let look = || -> Result<[f64; 4]> {
        let stat = json(&["stat", "--pid", &pid])?;
        let mut values = [0.0; 4];
        for (value, name) in values.iter_mut().zip(names) {
            *value = number(&stat[0][name])?;
        }
        Ok(values)
    };
    let mut before = look()?;
    for (map, redirected, published) in [(&twins, 99, 1), (&single, 0, 2)] {
        map.merge()?;
        let after = look()?;
        let page = PAGE as i64;
        let right = [
            (redirected + published) * page,
            redirected,
            published,
            redirected * (page - 16) - published * 96,
        ];
        for ((name, right), (before, after)) in
            names.iter().zip(right).zip(before.into_iter().zip(after))
        {
            let change = after - before;
            ensure!(change == right as f64, "{name}: {change}, not {right}");
        }
        before = after;
    }
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

/// Of a table in which 500 pages are there twice; and all of it where that is asked for.
fn nothing_is_published_for_nothing() -> Result<()> {
    let crew = Crew::start([(Holding::Table, 0)])?;
    let pages = |report: &Value, name: &str| -> Result<f64> {
        Ok(number(&report["processes"][0][name])? / PAGE as f64)
    };
    let twins = crew.sksm(&["merge"])?;
    let (saved, published) = (
        pages(&twins, "saved_bytes")?,
        pages(&twins, "published_bytes")?,
    );
    ensure!((500.0..600.0).contains(&saved), "{twins}");
    ensure!((500.0..600.0).contains(&published), "{twins}");
    ensure!(pages(&twins, "net_bytes")? > 0.0, "{twins}");
    // Nor for a process that is not chosen: of the same mapping most pages are not merged, and are no twins.
    let later = Crew::start([(Holding::Table, 0)])?;
    let few = later.sksm(&["merge"])?;
    ensure!(
        number(&few["processes"][0]["taken_pages"])? < 1500.0,
        "{few}"
    );
    ensure!(pages(&few, "published_bytes")? < 100.0, "{few}");
    drop(later);
    let all = crew.sksm(&["merge", "--everything"])?;
    ensure!(pages(&all, "published_bytes")? >= 2000.0, "{all}");
    ensure!(pages(&all, "net_bytes")? < 0.0, "{all}");
    // Until somebody comes that has the same.
    let unshared =
        |report: &Value| Ok::<_, anyhow::Error>(number(&report["unshared_bytes"])? / PAGE as f64);
    ensure!(unshared(&twins)? < 100.0, "{twins}");
    ensure!((2000.0..2500.0).contains(&unshared(&all)?), "{all}");
    let other = Crew::start([(Holding::Table, 0)])?;
    let joined = other.sksm(&["merge"])?;
    ensure!(unshared(&joined)? <= -1900.0, "{joined}");
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
