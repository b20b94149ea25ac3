//! The verb `stat`: counters, as a table, JSON, or text for Prometheus.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use sksm::Error;

use crate::footprint::Footprint;
use crate::metrics::{self, Format};
use crate::output::BOLD;
use crate::reason::{self, Crowd};
use crate::scan::seen::{self, Seen};
use crate::store::{self, Account};
use crate::system::{Counters, System};
use crate::target::{Targets, name_of};
use crate::{exit, output, support};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    targets: Targets,
    /// OpenMetrics text
    #[arg(long, conflicts_with = "json")]
    openmetrics: bool,
    /// Prometheus's older text format, which node_exporter's textfile collector reads
    #[arg(long, conflicts_with_all = ["json", "openmetrics"])]
    prometheus: bool,
}

/// Of the whole machine.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    system: &'a System,
    /// What runs `sksm scan`, or did.
    scanner: &'a Seen,
    /// Of this user; none without one.
    store: &'a store::Seen,
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let system = System::read();
    let mut first = None;
    let mut footprints = Vec::new();
    // Without a choice, of the system.
    let whole = args.targets.nobody();
    let chosen = match whole {
        true => None,
        false => Some(args.targets.choose()?),
    };
    let (mut left_out, mut partly) = (Crowd::default(), false);
    if let Some(chosen) = &chosen {
        for pid in chosen.pids.iter().copied() {
            match Footprint::of(pid) {
                Ok(footprint) => footprints.push(footprint),
                Err(error) => {
                    let gone = matches!(error, Error::Gone { .. });
                    partly |= chosen.must(pid, gone);
                    left_out.add(pid, &name_of(pid), &reason::of(pid, &error));
                    first.get_or_insert(error);
                }
            }
        }
    }
    if let Some(error) = first.filter(|_| footprints.is_empty()) {
        return Err(exit::because(&error, &left_out.lines()));
    }
    left_out.tell("left out");
    let metrics = args.openmetrics || args.prometheus;
    // Of processes nothing is told that the scanner or the store knows.
    let (scanner, store) = match whole || metrics {
        true => (Seen::now(), store::Seen::now()),
        false => Default::default(),
    };
    let hidden = scanner.hidden.iter().chain(&store.hidden);
    hidden.for_each(|why| output::note(why));
    if metrics {
        let format = match args.prometheus {
            true => Format::Prometheus,
            false => Format::OpenMetrics,
        };
        output::plain(&metrics::text(
            &system,
            scanner.state.as_ref(),
            store.account.as_ref(),
            &footprints,
            format,
        ))?;
    } else if whole {
        if json {
            output::json(&Whole {
                system: &system,
                scanner: &scanner,
                store: &store,
            })?;
        } else {
            show(&system)?;
            if let Some(state) = &scanner.state {
                output::print(&section("scanner", &seen::facts_now(state)))?;
            }
            if let Some(account) = &store.account {
                output::print(&section("store", &store_facts(account)))?;
            }
        }
    } else if json {
        output::json(&footprints)?;
    } else {
        show_processes(&footprints)?;
    }
    let merges = system.sksm.is_some() || system.ksm.is_some();
    match partly {
        true => Ok(ExitCode::from(exit::PARTLY)),
        false if whole && !merges && store.account.is_none() => Err(support::uncounted()),
        false => Ok(ExitCode::SUCCESS),
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
                value.map_or("-".into(), i64::to_string)
            };
            let values = columns.iter().map(value);
            std::iter::once((*name).to_owned()).chain(values).collect()
        })
        .collect();
    output::table(&["counter", "SKSM", "KSM"], &rows)
}

fn store_facts(account: &Account) -> [(&'static str, String); 4] {
    let size = |bytes: u64| output::bytes(bytes as i64);
    [
        ("files", account.files.to_string()),
        (
            "held",
            format!(
                "{} of {}",
                size(account.held_bytes),
                size(account.limit_bytes)
            ),
        ),
        ("mapped", size(account.mapped_bytes)),
        ("saved", output::bytes(account.saved_bytes)),
    ]
}

/// What is known of something else, below the counters.
fn section(title: &str, facts: &[(&str, String)]) -> String {
    let lines = facts
        .iter()
        .map(|(name, what)| format!("{name:16}  {}\n", output::clean(what)));
    format!("\n{BOLD}{title}{BOLD:#}\n{}", lines.collect::<String>())
}

fn show_processes(footprints: &[Footprint]) -> Result<()> {
    let rows: Vec<Vec<String>> = (footprints.iter())
        .map(|of| {
            let bytes = [of.rss_bytes, of.anonymous_bytes, of.merged_bytes];
            let told = [of.zero_bytes, of.profit_bytes];
            std::iter::once(format!("{} {}", of.pid, of.name))
                .chain(bytes.map(|bytes| output::bytes(bytes as i64)))
                .chain(told.map(|bytes| bytes.map_or("-".into(), output::bytes)))
                .collect()
        })
        .collect();
    let head = [
        "process",
        "resident",
        "anonymous",
        "merged",
        "zero pages",
        "saved net",
    ];
    output::table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::state::tests::example;

    #[test]
    fn the_scanner_is_a_section_of_its_own() {
        let state = example();
        let text = section("scanner", &seen::facts(&state, state.updated));
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(
            plain.starts_with("\nscanner\nrunning           process 42, since "),
            "{plain}"
        );
        assert!(
            plain.contains("\nsaved             2048.0 MiB\n"),
            "{plain}"
        );
    }

    #[test]
    fn in_json_it_stands_beside_the_counters() {
        let system = System {
            sksm: None,
            ksm: None,
        };
        let of = |state, store: &store::Seen| {
            let scanner = &Seen {
                state,
                hidden: None,
            };
            let whole = Whole {
                system: &system,
                scanner,
                store,
            };
            serde_json::to_value(whole).unwrap()
        };
        let report = of(Some(example()), &store::Seen::default());
        assert_eq!(report["scanner"]["total"]["came_apart_pages"], 1234);
        assert!(report["ksm"].is_null() && report["store"].is_null());
        let report = of(None, &store::tests::seen());
        assert!(report["scanner"].is_null());
        assert_eq!(report["store"]["files"], 2);
    }
}
