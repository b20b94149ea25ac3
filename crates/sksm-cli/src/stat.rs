//! The verb `stat`: counters, as a table, JSON, or text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use sksm::{Error, ProcessStatistics, SystemStatistics};

use crate::target::name_of;
use crate::{exit, output};

#[derive(clap::Args)]
pub struct Args {
    /// Of this process instead of the whole system; may be given more than once
    #[arg(long, short, value_name = "PID", num_args = 1..)]
    pid: Vec<u32>,
    /// OpenMetrics text, as for node_exporter's textfile collector
    #[arg(long, conflicts_with = "json")]
    openmetrics: bool,
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
    if args.openmetrics {
        output::plain(&openmetrics(&system, &rows))?;
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

/// Counters that only grow, by their names in sysfs.
const GROWING: &[&str] = &[
    "calls",
    "full_scans",
    "pages_busy",
    "pages_merged",
    "pages_published",
    "pages_scanned",
    "pages_withdrawn",
];

fn openmetrics(system: &System, rows: &[Row]) -> String {
    let mut text = String::new();
    for (engine, counters) in [("sksm", &system.sksm), ("ksm", &system.ksm)] {
        for (name, value) in counters.iter().flatten() {
            // Where the file has its own name before it already.
            let name = name.strip_prefix("ksm_").unwrap_or(name);
            let (kind, suffix) = if GROWING.contains(&name) {
                ("counter", "_total")
            } else {
                ("gauge", "")
            };
            // Writing to a String cannot fail.
            _ = writeln!(text, "# TYPE {engine}_{name} {kind}");
            _ = writeln!(text, "{engine}_{name}{suffix} {value}");
        }
    }
    type Field = (&'static str, fn(&Row) -> u64);
    let fields: [Field; 3] = [
        ("resident", |row| row.rss_bytes),
        ("anonymous", |row| row.anonymous_bytes),
        ("merged", |row| row.merged_bytes),
    ];
    for (field, value) in fields.iter().filter(|_| !rows.is_empty()) {
        _ = writeln!(text, "# TYPE sksm_process_{field}_bytes gauge");
        _ = writeln!(text, "# UNIT sksm_process_{field}_bytes bytes");
        for row in rows {
            let name: String = (row.name.chars())
                .map(|letter| match letter {
                    '"' | '\\' | '\n' => '_',
                    letter => letter,
                })
                .collect();
            let (pid, value) = (row.pid, value(row));
            _ = writeln!(
                text,
                "sksm_process_{field}_bytes{{pid=\"{pid}\",name=\"{name}\"}} {value}"
            );
        }
    }
    text + "# EOF\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_as_specified() {
        let system = System {
            sksm: Some([("calls", 3), ("pages_shared", 2)].into()),
            ksm: Some([("ksm_zero_pages", 1)].into()),
        };
        let row = Row {
            pid: 7,
            name: "a \"b".into(),
            rss_bytes: 3,
            anonymous_bytes: 2,
            merged_bytes: 1,
        };
        let expected = "\
# TYPE sksm_calls counter
sksm_calls_total 3
# TYPE sksm_pages_shared gauge
sksm_pages_shared 2
# TYPE ksm_zero_pages gauge
ksm_zero_pages 1
# TYPE sksm_process_resident_bytes gauge
# UNIT sksm_process_resident_bytes bytes
sksm_process_resident_bytes{pid=\"7\",name=\"a _b\"} 3
# TYPE sksm_process_anonymous_bytes gauge
# UNIT sksm_process_anonymous_bytes bytes
sksm_process_anonymous_bytes{pid=\"7\",name=\"a _b\"} 2
# TYPE sksm_process_merged_bytes gauge
# UNIT sksm_process_merged_bytes bytes
sksm_process_merged_bytes{pid=\"7\",name=\"a _b\"} 1
# EOF
";
        assert_eq!(openmetrics(&system, &[row]), expected);
    }
}
