//! The verb `merge`.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Result;
use serde::Serialize;
use sksm::{Error, Kinds, Process, ProcessStatistics, Support};

use crate::target::{Targets, name_of};
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
    let bar = output::progress("merging", pids.len() as u64);
    let mut rows = Vec::new();
    let mut first = None;
    for pid in pids {
        let mut row = Row {
            pid,
            name: name_of(pid),
            ..Row::default()
        };
        if let Err(error) = merge(&args, &mut row) {
            row.error = Some(error.to_string());
            first.get_or_insert(error);
        }
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let done = rows.iter().filter(|row| row.error.is_none()).count();
    let report = Report {
        dry_run: args.dry_run,
        saved_bytes: (before - anonymous_pages()) * sksm::page_size() as i64,
        processes: rows,
    };
    if json {
        output::json(&report)?;
    } else {
        show(&report);
    }
    match first {
        // Nothing at all could be done: the first reason stands for all.
        Some(error) if done == 0 => Err(error.into()),
        Some(_) => Ok(ExitCode::from(exit::PARTLY)),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn merge(args: &Args, row: &mut Row) -> Result<(), Error> {
    let process = Process::open(row.pid)?;
    let wanted = |mapping: &sksm::Mapping| args.what.kinds.has(mapping.kind);
    for mapping in process.mappings()? {
        if wanted(&mapping) && mapping.statistics.anonymous > 0 {
            row.mappings += 1;
            row.pages += mapping.statistics.anonymous / sksm::page_size() as u64;
        }
    }
    if args.dry_run {
        return Ok(());
    }
    let before = ProcessStatistics::of(row.pid)?;
    let done = process.merge(wanted)?;
    row.refused = done.refused.iter().map(Error::to_string).collect();
    row.merged_bytes = ProcessStatistics::of(row.pid)?.ksm as i64 - before.ksm as i64;
    Ok(())
}

fn show(report: &Report) {
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
    output::table(&["process", "mappings", "private pages", "merged"], &rows);
    for row in &report.processes {
        for problem in row.error.iter().chain(&row.refused) {
            output::note(&format!("{} {}: {problem}", row.pid, row.name));
        }
    }
    if report.dry_run {
        anstream::println!("nothing was merged; `sksm estimate` tells what it would save");
    } else {
        let saved = output::bytes(report.saved_bytes);
        anstream::println!("anonymous memory of the system shrank by {saved}");
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
