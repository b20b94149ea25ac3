//! The verb `merge`.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use sksm::{Error, Kinds, Mapping, Process, ProcessStatistics, Region, Support, merge_remote_each};

use crate::target::{self, Targets, name_of};
use crate::{exit, output};

/// A list of kinds, and as it was written.
#[derive(Clone)]
pub struct What {
    pub kinds: Kinds,
    pub list: String,
}

impl FromStr for What {
    type Err = &'static str;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let kinds = Kinds::parse(list.as_bytes())
            .ok_or("give a list of text, data, heap, stack, as in text,heap")?;
        Ok(What {
            kinds,
            list: list.into(),
        })
    }
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    targets: Targets,
    /// What to merge: a list of text, data, heap, stack
    #[arg(long, default_value = "text,data,heap")]
    what: What,
    /// Only tell what would be looked at; `estimate` tells what it would save
    #[arg(long)]
    dry_run: bool,
}

/// What was done to one process.
#[derive(Serialize, Default)]
struct Row {
    pid: u32,
    name: String,
    mappings: usize,
    /// Private pages in those mappings.
    pages: u64,
    /// By how much its merged memory has grown; not counting pages that became the zero page.
    merged_bytes: i64,
    refused: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    outcome: Outcome,
}

/// Whether anything could be done to a process.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Outcome {
    #[default]
    Done,
    /// Some of it was refused.
    Partly,
    /// All of it.
    Nothing,
}

impl Outcome {
    /// Of a whole run.
    fn of_all(rows: &[Row]) -> Self {
        let all = |outcome| rows.iter().all(|row| row.outcome == outcome);
        match (all(Outcome::Done), all(Outcome::Nothing)) {
            (true, _) => Outcome::Done,
            (_, true) => Outcome::Nothing,
            _ => Outcome::Partly,
        }
    }
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    processes: Vec<Row>,
    /// By how much the anonymous memory of the whole system has shrunk meanwhile.
    saved_bytes: i64,
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    if !args.dry_run && sksm::support() != Support::Merge {
        return Err(Error::Unsupported {
            instead: sksm::support(),
            errno: libc::EINVAL,
        }
        .into());
    }
    let pids = args.targets.pids()?;
    let before = anonymous_pages();
    let total = pids
        .iter()
        .map(|pid| target::bytes_of(*pid, target::PRIVATE))
        .sum();
    let bar = output::progress("merging", total);
    let mut rows = Vec::new();
    let mut first = None;
    for pid in pids {
        let mut row = Row {
            pid,
            name: name_of(pid),
            ..Row::default()
        };
        if let Err(error) = merge(&args, &mut row, &bar) {
            row.error = Some(error.to_string());
            row.outcome = Outcome::Nothing;
            first.get_or_insert(error);
        }
        rows.push(row);
    }
    bar.finish_and_clear();
    let outcome = Outcome::of_all(&rows);
    let report = Report {
        dry_run: args.dry_run,
        saved_bytes: (before - anonymous_pages()) * sksm::page_size() as i64,
        processes: rows,
    };
    if json {
        output::json(&report)?;
    } else {
        show(&report)?;
    }
    match (outcome, first) {
        (Outcome::Done, _) => Ok(ExitCode::SUCCESS),
        (Outcome::Partly, _) => Ok(ExitCode::from(exit::PARTLY)),
        // The first reason stands for all.
        (Outcome::Nothing, Some(error)) => Err(error.into()),
        (Outcome::Nothing, None) => bail!("every mapping was refused; nothing was merged"),
    }
}

/// So many bytes of addresses are merged by one call, so that the progress is seen.
const AT_ONCE: usize = 64 << 20;

fn merge(args: &Args, row: &mut Row, bar: &ProgressBar) -> Result<(), Error> {
    let process = Process::open(row.pid)?;
    let mut mappings = process.mappings()?;
    mappings.retain(|mapping| {
        args.what.kinds.has(mapping.kind) && mapping.statistics.anonymous > 0 && mapping.mergeable
    });
    row.mappings = mappings.len();
    let bytes: u64 = mappings.iter().map(|one| one.statistics.anonymous).sum();
    row.pages = bytes / sksm::page_size() as u64;
    let Some(pidfd) = process.pidfd().filter(|_| !args.dry_run) else {
        return Ok(());
    };
    let before = ProcessStatistics::of(row.pid)?;
    let mut advised = 0;
    for batch in batches(&mappings) {
        let done = merge_remote_each(pidfd, &batch.regions)?;
        advised += done.advised;
        // The parts of a range with a hole in it that are mapped were merged.
        let whole = |error: &&Error| !matches!(error, Error::Hole { .. });
        if done.refused.iter().any(|error| whole(&error)) {
            row.outcome = Outcome::Partly;
        }
        row.refused
            .extend(done.refused.iter().map(Error::to_string));
        bar.inc(batch.private);
    }
    if advised == 0 && !row.refused.is_empty() {
        row.outcome = Outcome::Nothing;
    }
    row.merged_bytes = ProcessStatistics::of(row.pid)?.ksm as i64 - before.ksm as i64;
    Ok(())
}

/// What one call merges.
#[derive(Debug, Default, PartialEq)]
struct Batch {
    regions: Vec<Region>,
    len: usize,
    /// About so much of it is present.
    private: u64,
}

/// Cuts long mappings, and puts short ones together.
fn batches(mappings: &[Mapping]) -> Vec<Batch> {
    let mut batches = vec![Batch::default()];
    for mapping in mappings {
        let Region { start, len } = mapping.region;
        for offset in (0..len).step_by(AT_ONCE) {
            let part = (len - offset).min(AT_ONCE);
            if batches
                .last()
                .is_none_or(|batch| batch.len + part > AT_ONCE)
            {
                batches.push(Batch::default());
            }
            let Some(batch) = batches.last_mut() else {
                continue;
            };
            batch.regions.push(Region {
                start: start + offset,
                len: part,
            });
            batch.len += part;
            let private = u128::from(mapping.statistics.anonymous) * part as u128 / len as u128;
            batch.private += private as u64;
        }
    }
    batches.retain(|batch| batch.len > 0);
    batches
}

fn show(report: &Report) -> Result<()> {
    let rows: Vec<Vec<String>> = (report.processes.iter())
        .map(|row| {
            vec![
                format!("{} {}", row.pid, row.name),
                row.mappings.to_string(),
                row.pages.to_string(),
                output::bytes(row.merged_bytes),
            ]
        })
        .collect();
    output::table(&["process", "mappings", "private pages", "merged"], &rows)?;
    for row in &report.processes {
        for problem in row.error.iter().chain(&row.refused) {
            output::note(&format!("{} {}: {problem}", row.pid, row.name));
        }
    }
    if report.dry_run {
        output::line("nothing was merged; `sksm estimate` tells what it would save")
    } else {
        let amount = output::bytes(report.saved_bytes.abs());
        output::line(&match report.saved_bytes {
            // What else went on outweighed it.
            ..0 => format!("anonymous memory of the system grew by {amount} meanwhile"),
            0 => "anonymous memory of the system is as much as before".into(),
            1.. => format!("anonymous memory of the system shrank by {amount}"),
        })
    }
}

/// In the whole system; 0 if it cannot be read, which only costs a figure.
fn anonymous_pages() -> i64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("nr_anon_pages "))
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outcome: Outcome) -> Row {
        Row {
            outcome,
            ..Row::default()
        }
    }

    #[test]
    fn what_is_refused_shows_in_the_status() {
        use Outcome::{Done, Nothing, Partly};
        for (outcomes, expected) in [
            (&[] as &[_], Done),
            (&[Done, Done], Done),
            (&[Done, Partly], Partly),
            (&[Done, Nothing], Partly),
            (&[Nothing, Partly], Partly),
            (&[Nothing, Nothing], Nothing),
        ] {
            let rows: Vec<Row> = outcomes.iter().copied().map(row).collect();
            assert!(Outcome::of_all(&rows) == expected);
        }
    }

    /// Every byte once, in order, in calls that are not too long.
    #[test]
    fn mappings_are_merged_in_parts() {
        let pages = vec![7u8; 1 << 20];
        let (own, addr) = (Process::own().mappings().unwrap(), pages.as_ptr() as usize);
        let mapping = own.iter().find(|mapping| mapping.region.contains(addr));
        let mapping = |start, len| {
            let mut mapping = mapping.unwrap().clone();
            mapping.region = Region { start, len };
            mapping
        };
        let (small, large) = (4096, 3 * AT_ONCE + 4096);
        let mappings = [
            mapping(small, small),
            mapping(1 << 20, small),
            mapping(1 << 30, large),
            mapping(1 << 40, small),
        ];
        let batches = batches(&mappings);
        assert_eq!(batches.len(), 5);
        assert!(batches.iter().all(|batch| batch.len <= AT_ONCE));
        assert_eq!(batches[0].regions.len(), 2);
        let regions: Vec<Region> = batches
            .into_iter()
            .flat_map(|batch| batch.regions)
            .collect();
        let mut joined: Vec<Region> = Vec::new();
        for region in regions {
            match joined.last_mut() {
                Some(last) if last.end() == region.start => last.len += region.len,
                _ => joined.push(region),
            }
        }
        let expected: Vec<Region> = mappings.iter().map(|mapping| mapping.region).collect();
        assert_eq!(joined, expected);
    }
}
