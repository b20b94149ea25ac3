//! The verb `estimate`: reads what processes hold, and says what merging would save. Nothing is changed.
//!
//! The page tables are read first, so that no page is faulted in; then each present private page is hashed. What is kept is 48
//! bytes for each page looked at, 12 MiB for a GiB; twice that with `--settle`.

pub mod pagemap;

mod count;
mod memory;
mod plot;
mod read;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::target::{Targets, name_of};
use crate::{exit, merge, output};
use count::{Scope, count};
use read::{Subject, Unread};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    targets: Targets,
    /// What to look at: a list of text, data, heap, stack
    #[arg(long, default_value = "text,data,heap")]
    what: merge::What,
    /// Look a second time after so many seconds, and tell what has stayed the same
    #[arg(long, value_name = "SECONDS")]
    settle: Option<u64>,
    /// Draw it, too
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// How many mappings one merged page serves (default: as this kernel is set, else 256)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(2..))]
    max_page_sharing: Option<u64>,
}

/// One page that was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Page {
    hash: u128,
    /// 0 if unknown.
    pfn: u64,
    addr: u64,
    process: u32,
    kind: u8,
    zero: bool,
}

/// The kinds that are told apart, by `Page::kind`.
const KINDS: [&str; 5] = ["patched text", "data", "heap", "stack", "other anonymous"];

/// What merging would do to some pages.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
struct Saving {
    /// Mappings of private pages.
    mapped_pages: u64,
    /// Physical pages behind them now.
    pages: f64,
    /// Physical pages that merging would free.
    saved_pages: f64,
}

#[derive(Serialize)]
struct Report {
    page_size: usize,
    max_page_sharing: u64,
    /// Where pages merge within one user only, as is the default.
    within_users: Saving,
    /// Where all processes share.
    across_users: Saving,
    /// Of `within_users`: by pages that hold nothing but zeros.
    zero: Saving,
    #[serde(skip_serializing_if = "Option::is_none")]
    stable: Option<Saving>,
    kinds: BTreeMap<&'static str, Saving>,
    processes: Vec<Row>,
    unread: Vec<Unread>,
    /// Pages that went while they were looked at.
    vanished_pages: u64,
    /// Pages that processes may have in common since a fork, which cannot be told without CAP_SYS_ADMIN.
    maybe_shared_pages: u64,
    read_bytes: u64,
    /// How long reading and hashing took, on the clock and in all threads together.
    seconds: f64,
    cpu_seconds: f64,
}

#[derive(Serialize)]
struct Row {
    pid: u32,
    name: String,
    #[serde(flatten)]
    saving: Saving,
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let pids = args.targets.pids()?;
    let max_page_sharing = args.max_page_sharing.unwrap_or_else(|| {
        let set = sksm::SystemStatistics::sksm().and_then(|sksm| sksm.get("max_page_sharing"));
        set.unwrap_or(256)
    });
    raise_file_limit();
    let mut unread = Vec::new();
    let mut subjects = Vec::new();
    for pid in pids {
        match Subject::open(pid, args.what.kinds) {
            Ok(subject) => subjects.push(subject),
            Err(error) => unread.push(Unread::new(pid, name_of(pid), &error)),
        }
    }
    let (start, cpu_start) = (Instant::now(), cpu_time());
    let look = read::look(&subjects, &mut unread);
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu_time() - cpu_start);
    let users: Vec<u64> = subjects.iter().map(|subject| subject.domain).collect();
    let names: Vec<Row> = (subjects.iter())
        .map(|subject| Row {
            pid: subject.pid,
            name: subject.name.clone(),
            saving: Saving::default(),
        })
        .collect();
    let mut pages = look.pages;
    let within = count(
        &mut pages,
        &users,
        Scope::User,
        max_page_sharing,
        names.len(),
    );
    let across = count(
        &mut pages,
        &users,
        Scope::All,
        max_page_sharing,
        names.len(),
    );
    let stable = match args.settle {
        None => None,
        Some(seconds) => {
            std::thread::sleep(Duration::from_secs(seconds));
            let again = read::look(&subjects, &mut Vec::new());
            let mut stable = count::unchanged(pages, again.pages);
            let counted = count(
                &mut stable,
                &users,
                Scope::User,
                max_page_sharing,
                names.len(),
            );
            Some(counted.total)
        }
    };
    let processes = names
        .into_iter()
        .zip(within.processes)
        .map(|(row, saving)| Row { saving, ..row });
    let report = Report {
        page_size: sksm::page_size(),
        max_page_sharing,
        within_users: within.total,
        across_users: across.total,
        zero: within.zero,
        stable,
        kinds: (KINDS.into_iter().zip(within.kinds))
            .filter(|(name, _)| *name != "stack" || args.what.kinds.has(sksm::Kind::Stack))
            .collect(),
        processes: processes.collect(),
        unread,
        vanished_pages: look.vanished,
        maybe_shared_pages: look.maybe_shared,
        read_bytes: look.bytes,
        seconds,
        cpu_seconds,
    };
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::draw(&report))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if json {
        output::json(&report)?;
    } else {
        show(&report)?;
    }
    Ok(
        match (report.processes.is_empty(), report.unread.is_empty()) {
            (_, true) => ExitCode::SUCCESS,
            (true, false) if report.unread.iter().all(|unread| unread.denied) => {
                ExitCode::from(exit::DENIED)
            }
            (true, false) => ExitCode::FAILURE,
            (false, false) => ExitCode::from(exit::PARTLY),
        },
    )
}

/// Of this process, in seconds.
fn cpu_time() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec, into ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Two files are open for each process.
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // Where it fails, opening the files will say so.
    // SAFETY: reads and writes one valid structure.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

fn show(report: &Report) -> Result<()> {
    let size = |pages: f64| output::bytes((pages * report.page_size as f64) as i64);
    let row = |name: String, saving: &Saving| {
        let share = if saving.pages > 0.0 {
            format!("{:.0} %", 100.0 * saving.saved_pages / saving.pages)
        } else {
            "-".into()
        };
        vec![name, size(saving.pages), size(saving.saved_pages), share]
    };
    let mut rows: Vec<_> = (report.processes.iter())
        .map(|process| {
            (
                process.saving.saved_pages,
                row(format!("{} {}", process.pid, process.name), &process.saving),
            )
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let left_out = rows.len().saturating_sub(20);
    let rows: Vec<_> = rows.into_iter().take(20).map(|(_, row)| row).collect();
    output::table(&["process", "private memory", "saved", ""], &rows)?;
    if left_out > 0 {
        output::line(&format!("... and {left_out} more; --json lists all"))?;
    }
    output::line("")?;
    let mut rows: Vec<_> = (KINDS.iter())
        .filter_map(|kind| Some(row((*kind).into(), report.kinds.get(kind)?)))
        .collect();
    rows.push(row("of all that: pages of zeros".into(), &report.zero));
    output::table(&["kind", "private memory", "saved", ""], &rows)?;
    output::line("")?;
    let mut rows = vec![
        row("within each user".into(), &report.within_users),
        row("across users".into(), &report.across_users),
    ];
    if let Some(stable) = &report.stable {
        rows.push(row("within each user, unchanged".into(), stable));
    }
    output::table(&["merging", "private memory", "saved", ""], &rows)?;
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for unread in &report.unread {
        let names = reasons.entry(&unread.reason).or_default();
        names.push(format!("{} {}", unread.pid, unread.name));
    }
    for (reason, names) in reasons {
        let (count, names) = (names.len(), names.join(", "));
        output::note(&format!("left out, {count}: {names}: {reason}"));
    }
    if report.maybe_shared_pages > 0 {
        output::note(&format!(
            "{} may be shared since a fork already and is counted as if it were not; run as root to tell",
            size(report.maybe_shared_pages as f64)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the help and the documentation say.
    #[test]
    fn a_page_takes_48_bytes() {
        assert_eq!(size_of::<Page>(), 48);
    }
}
