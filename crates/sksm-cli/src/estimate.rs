//! The verb `estimate`: reads what processes hold, and says what merging would save. Nothing is changed.
//!
//! The page tables are read first, so that no page is faulted in; then each present private page is hashed, or a sample of it and
//! then only those whose sample is another's as well. What is kept is 16 bytes for each page looked at, 4 MiB for a GiB; 4 more
//! of one that is read in full while others are sampled; and 8 more with `--settle`, which samples none. Of a frame that several
//! processes have in common also its hash is kept.

pub mod pagemap;

mod count;
mod frames;
mod memory;
mod page;
mod pieces;
mod plot;
mod probe;
mod read;
mod repeated;
mod sample;
mod subject;
mod worker;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::target::{self, Targets};
use crate::{exit, merge, output};
use frames::Mappings;
use subject::{Subject, Unread};

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

/// The kinds that are told apart, by the number that a page has of it.
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
    /// Pages that other processes may hold as well, which cannot be told without CAP_SYS_ADMIN.
    maybe_shared_pages: u64,
    /// What was read; a frame that several processes have only once, where that can be told.
    read_bytes: u64,
    /// How long it took to read, hash and count all, on the clock and in all threads together.
    seconds: f64,
    cpu_seconds: f64,
    /// The most memory that this command itself took.
    own_peak_bytes: u64,
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
    let plot = args.plot.as_deref().map(Plot::open).transpose()?;
    raise_file_limit();
    keep_large_blocks_apart();
    let mut report = look(&args, &pids)?;
    report.unread.sort_by_key(|unread| unread.pid);
    if json {
        output::json(&report)?;
    } else {
        show(&report)?;
    }
    // Last, so that nothing is lost where it fails.
    if let Some(plot) = plot {
        plot.write(&plot::draw(&report))?;
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

fn look(args: &Args, pids: &[u32]) -> Result<Report> {
    if pids.len() > page::MOST_PROCESSES {
        bail!("{} processes are too many to tell apart", pids.len());
    }
    let how = read::How {
        kinds: args.what.kinds,
        again: args.settle.is_some(),
    };
    let total: u64 = pids
        .iter()
        .map(|pid| target::bytes_of(*pid, target::PRIVATE))
        .sum();
    let (start, cpu_start) = (Instant::now(), cpu_time());
    let bar = output::progress("reading", total);
    let mut look = read::look(pids, how, &bar);
    bar.finish_and_clear();
    let domains = numbered(&look.subjects);
    let max_page_sharing = args.max_page_sharing.unwrap_or_else(|| {
        let set = sksm::SystemStatistics::sksm().and_then(|sksm| sksm.get("max_page_sharing"));
        set.unwrap_or(256)
    });
    let rules = count::Rules {
        domains: &domains,
        most: max_page_sharing,
        zero: worker::hash_of_zeros(),
        tells_frames: pagemap::tells_frames(),
        mappings: &Mappings::open(),
    };
    let counted = count::count(&look.pages, &look.singles, &rules);
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu_time() - cpu_start);
    let stable = args.settle.map(|settle| {
        // They are not needed any more, and their memory is for the second look.
        look.pages = Vec::new();
        std::thread::sleep(Duration::from_secs(settle));
        let bar = output::progress("reading again", total);
        let mut again = read::look_again(&look.subjects, &look.before, &bar);
        bar.finish_and_clear();
        for unread in &mut again.unread {
            unread.reason = format!("at the second look: {}", unread.reason);
        }
        look.unread.append(&mut again.unread);
        count::count(&again.pages, &again.singles, &rules).within
    });
    let rows = (look.subjects.iter().zip(counted.processes))
        .filter_map(|(subject, saving)| Some((subject.as_ref()?, saving)))
        .map(|(subject, saving)| Row {
            pid: subject.pid,
            name: subject.name.clone(),
            saving,
        });
    Ok(Report {
        page_size: sksm::page_size(),
        max_page_sharing,
        within_users: counted.within,
        across_users: counted.across,
        zero: counted.zero,
        stable,
        kinds: (KINDS.into_iter().zip(counted.kinds))
            .filter(|(name, _)| *name != "stack" || args.what.kinds.has(sksm::Kind::Stack))
            .collect(),
        processes: rows.collect(),
        unread: look.unread,
        vanished_pages: look.vanished,
        maybe_shared_pages: counted.maybe_shared,
        read_bytes: look.bytes,
        seconds,
        cpu_seconds,
        own_peak_bytes: target::bytes_of(std::process::id(), "VmHWM:"),
    })
}

/// The domains of processes, numbered from 0.
fn numbered(subjects: &[Option<Arc<Subject>>]) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    subjects
        .iter()
        .map(|subject| match subject {
            None => 0,
            Some(subject) => {
                let next = numbers.len();
                *numbers.entry(subject.domain).or_insert(next)
            }
        })
        .collect()
}

/// The file of the picture: opened before anything is read, written after all.
struct Plot {
    path: PathBuf,
    file: File,
}

impl Plot {
    fn open(path: &Path) -> Result<Self> {
        // What it held is kept until there is something better.
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(path);
        Ok(Plot {
            path: path.into(),
            file: file.with_context(|| format!("cannot write {}", path.display()))?,
        })
    }

    fn write(mut self, text: &str) -> Result<()> {
        // Not for what is no ordinary file.
        self.file.set_len(0).ok();
        (self.file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
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

/// So that they grow without being copied, and leave no holes. Else glibc keeps ever larger ones with the small.
fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers only.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
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
            "{} may be shared since a fork with processes that were not looked at, which would keep it; \
             run as root to tell",
            size(report.maybe_shared_pages as f64)
        ));
    }
    Ok(())
}
