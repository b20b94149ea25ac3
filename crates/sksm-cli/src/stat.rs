//! The verb `stat`: counters, as a table, JSON, or text for Prometheus.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use sksm::{Error, ProcessStatistics, SystemStatistics};

use crate::metrics::{self, Format};
use crate::target::name_of;
use crate::{exit, output};

#[derive(clap::Args)]
pub struct Args {
    /// Of this process instead of the whole system; may be given more than once
    #[arg(long, short, value_name = "PID", num_args = 1..)]
    pid: Vec<u32>,
    /// OpenMetrics text
    #[arg(long, conflicts_with = "json")]
    openmetrics: bool,
    /// Prometheus's older text format, which node_exporter's textfile collector reads
    #[arg(long, conflicts_with_all = ["json", "openmetrics"])]
    prometheus: bool,
}

type Counters = BTreeMap<&'static str, u64>;

/// Counters by their names in sysfs.
#[derive(Serialize, Clone)]
pub struct System {
    pub sksm: Option<Counters>,
    pub ksm: Option<Counters>,
}

impl System {
    pub fn read() -> Self {
        let counters = |statistics: SystemStatistics| statistics.iter().collect();
        System {
            sksm: SystemStatistics::sksm().map(counters),
            ksm: SystemStatistics::ksm().map(counters),
        }
    }
}

/// Memory of a process.
#[derive(Serialize, Clone)]
pub struct Row {
    pub pid: u32,
    pub name: String,
    pub rss_bytes: u64,
    pub anonymous_bytes: u64,
    pub merged_bytes: u64,
}

impl Row {
    pub fn of(pid: u32) -> Result<Self, Error> {
        let statistics = ProcessStatistics::of(pid)?;
        Ok(Row {
            pid,
            name: name_of(pid),
            rss_bytes: statistics.rss,
            anonymous_bytes: statistics.anonymous,
            merged_bytes: statistics.ksm,
        })
    }
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let system = System::read();
    let mut first = None;
    let mut rows = Vec::new();
    // None twice: a metric is given once.
    let pids: std::collections::BTreeSet<u32> = args.pid.iter().copied().collect();
    for pid in pids {
        match Row::of(pid) {
            Ok(row) => rows.push(row),
            Err(error) => {
                output::note(&format!("{pid} {}: {error}", name_of(pid)));
                first.get_or_insert(error);
            }
        }
    }
    if args.openmetrics || args.prometheus {
        let format = match args.prometheus {
            true => Format::Prometheus,
            false => Format::OpenMetrics,
        };
        output::plain(&metrics::text(&system, &rows, format))?;
    } else if args.pid.is_empty() {
        if json {
            output::json(&system)?;
        } else {
            show(&system)?;
        }
    } else if json {
        output::json(&rows)?;
    } else {
        show_processes(&rows)?;
    }
    match first {
        Some(error) if rows.is_empty() => Err(error.into()),
        Some(_) => Ok(ExitCode::from(exit::PARTLY)),
        None if args.pid.is_empty() && system.sksm.is_none() && system.ksm.is_none() => {
            Err(Error::Unsupported {
                instead: sksm::support(),
                errno: libc::EINVAL,
            }
            .into())
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

fn show(system: &System) -> Result<()> {
    let none = Counters::new();
    let columns = [&system.sksm, &system.ksm].map(|counters| counters.as_ref().unwrap_or(&none));
    let mut names: Vec<&str> = columns
        .iter()
        .flat_map(|counters| counters.keys().copied())
        .collect();
    names.sort_unstable();
    names.dedup();
    let rows: Vec<Vec<String>> = (names.iter())
        .map(|name| {
            let value = |counters: &&Counters| {
                let value = counters.get(name);
                value.map_or("-".into(), u64::to_string)
            };
            let values = columns.iter().map(value);
            std::iter::once((*name).to_owned()).chain(values).collect()
        })
        .collect();
    output::table(&["counter", "SKSM", "KSM"], &rows)
}

fn show_processes(rows: &[Row]) -> Result<()> {
    let rows: Vec<Vec<String>> = (rows.iter())
        .map(|row| {
            let bytes = [row.rss_bytes, row.anonymous_bytes, row.merged_bytes];
            std::iter::once(format!("{} {}", row.pid, row.name))
                .chain(bytes.map(|bytes| output::bytes(bytes as i64)))
                .collect()
        })
        .collect();
    output::table(&["process", "resident", "anonymous", "merged"], &rows)
}
