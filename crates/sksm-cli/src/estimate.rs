//! The verb `estimate`: reads what processes hold, and says what merging would save. Nothing is changed.
//!
//! The page tables are read first, so that no page is faulted in; then each present private page is hashed, or a sample of it and
//! then only those whose sample is another's as well. What is kept is 16 bytes for each page looked at, 4 MiB for a GiB; 4 more
//! of one that is read in full while others are sampled; and 8 more with `--settle`, which samples none. Of a frame that several
//! processes have in common also its hash is kept.

pub mod memory;
pub mod nodes;
pub mod pagemap;
pub mod sample;
pub mod subject;
pub mod twins;

mod before;
mod count;
mod frames;
mod page;
mod pieces;
mod plot;
mod probe;
mod read;
mod repeated;
mod report;
mod worker;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::census::Census;
use crate::cpu_clock::CpuClock;
use crate::descriptors;
use crate::domain::{Mode, Users};
use crate::reason::{self, Crowd};
use crate::target::{self, Targets};
use crate::what::What;
use crate::{exit, output, rights, unit};
use count::Domains;
use frames::Frames;
use nodes::Nodes;
use report::{By, Group, KINDS, Report, Row, Saving};
use subject::Subject;

#[derive(clap::Args)]
#[command(group(target::required()))]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    targets: Targets,
    /// What to look at: a list of text, data, heap, stack
    ///
    /// Of programs that run already data and heap are written. `sksm run`, which merges before `main`, takes text alone if nothing is said.
    #[arg(long, default_value = What::DEFAULT)]
    what: What,
    /// What a row of the table is (default: a process, or a program where there are more than 20)
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Look a second time after so many seconds, and tell what has stayed the same
    #[arg(long, value_name = "SECONDS")]
    settle: Option<u64>,
    /// Draw it, too
    #[arg(long, value_name = "FILE.svg", value_parser = svg)]
    plot: Option<PathBuf>,
    /// What the machine's merge domain is taken for (default: as this kernel is set, else cgroup, a kernel's own default)
    #[arg(long, value_enum)]
    domain: Option<Mode>,
    /// How many mappings one merged page serves (default: as this kernel is set, else 256)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(2..))]
    max_page_sharing: Option<u64>,
}

/// A path that does not promise another kind of picture.
fn svg(path: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(path);
    match path.extension() {
        Some(kind) if !kind.eq_ignore_ascii_case("svg") => {
            Err("the picture is an SVG: give a name that ends in .svg")
        }
        _ => Ok(path),
    }
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let chosen = args.targets.choose()?;
    let plot = args.plot.as_deref().map(Plot::open).transpose()?;
    descriptors::raise();
    keep_large_blocks_apart();
    let mut report = look(&args, &chosen.pids)?;
    report.unread.sort_by_key(|unread| unread.pid);
    let mut left_out = Crowd::default();
    for unread in &report.unread {
        left_out.add(unread.pid, &unread.name, &unread.reason);
    }
    if report.processes.is_empty() && !report.unread.is_empty() {
        // Who has gone meanwhile would not have helped.
        let mut there = report
            .unread
            .iter()
            .filter(|unread| !unread.gone)
            .peekable();
        let denied = there.peek().is_some() && there.all(|unread| unread.denied);
        let status = if denied { exit::DENIED } else { exit::FAILED };
        return Err(exit::with(status, &left_out.lines()));
    }
    if json {
        output::json(&report)?;
    } else {
        show(&report, &left_out)?;
    }
    // Last, so that nothing is lost where it fails.
    if let Some(plot) = plot {
        plot.write(&plot::draw(&report, &plot::Where::here()))?;
    }
    let partly = |unread: &subject::Unread| chosen.must(unread.pid, unread.gone);
    Ok(match report.unread.iter().any(partly) {
        true => ExitCode::from(exit::PARTLY),
        false => ExitCode::SUCCESS,
    })
}

fn look(args: &Args, pids: &[u32]) -> Result<Report> {
    if pids.len() > page::MOST_PROCESSES {
        bail!("{} processes are too many to tell apart", pids.len());
    }
    let how = read::How {
        kinds: args.what.kinds,
        again: args.settle.is_some(),
        spots: None,
    };
    let total: u64 = pids
        .iter()
        .map(|pid| target::bytes_of(*pid, target::PRIVATE))
        .sum();
    let (start, cpu_start) = (Instant::now(), cpu_time());
    let bar = output::progress("reading", total);
    let mut look = read::look(pids, how, &bar);
    bar.finish_and_clear();
    let mode = args.domain.or_else(Mode::read).unwrap_or(Mode::Cgroup);
    let domains = numbered(&look.subjects, mode);
    let others = OTHERS.map(|mode| numbered(&look.subjects, mode));
    let max_page_sharing = args.max_page_sharing.unwrap_or_else(|| {
        let set = sksm::SystemStatistics::sksm().and_then(|sksm| sksm.get("max_page_sharing"));
        set.and_then(|set| u64::try_from(set).ok()).unwrap_or(256)
    });
    let rules = count::Rules {
        domains: &domains,
        others: others.each_ref(),
        most: max_page_sharing,
        zero: page::hash_of_zeros(),
        tells_frames: pagemap::tells_frames(),
        mappings: &Frames::mappings(),
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
            apart: subject.owner.domain(mode).err().map(|why| why.to_string()),
            user: subject.owner.user(),
            undumpable: subject.owner.left_alone(subject.pid),
        });
    let rows: Vec<Row> = rows.collect();
    let by = args.by.unwrap_or(match rows.len() {
        ..=FEW => By::Process,
        _ => By::Program,
    });
    let mut left = Census::default();
    for row in &rows {
        left.and(&Census::of(row.pid, args.what.kinds));
    }
    let nodes = Nodes::of_this_look();
    let [within_users, across_users] = counted.others;
    Ok(Report {
        page_size: sksm::page_size(),
        max_page_sharing,
        domain: mode.name(),
        within_nodes: nodes == Nodes::Apart,
        nodes,
        within_domains: counted.within,
        within_users,
        across_users,
        zero: counted.zero,
        stable,
        kinds: (KINDS.into_iter().zip(counted.kinds))
            .filter(|(name, _)| *name != "stack" || args.what.kinds.has(sksm::Kind::Stack))
            .collect(),
        by,
        groups: groups(&rows, by),
        huge_pages: left.huge_bytes / huge_page(),
        left,
        processes: rows,
        unread: look.unread,
        vanished_pages: look.vanished,
        maybe_shared_pages: counted.maybe_shared,
        read_bytes: look.bytes,
        seconds,
        cpu_seconds,
        own_peak_bytes: target::bytes_of(std::process::id(), "VmHWM:"),
    })
}

/// So many rows are shown, and processes by themselves.
const FEW: usize = 20;

/// In bytes.
pub fn huge_page() -> u64 {
    let size = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    let size = size.ok().and_then(|size| size.trim().parse().ok());
    size.filter(|size| *size > 0).unwrap_or(2 << 20)
}

/// Puts processes together, those with the largest saving first.
fn groups(rows: &[Row], by: By) -> Vec<Group> {
    let users = Users::read();
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for row in rows {
        let name = match by {
            By::Program => row.name.clone(),
            By::Unit => unit::of(row.pid).unwrap_or("?".into()),
            By::User => users.name(row.user),
            By::Process => format!("{} {}", row.pid, row.name),
        };
        let group = groups.entry(name).or_default();
        group.processes += 1;
        group.saving.add(row.saving);
    }
    let named = groups.into_iter();
    let mut groups: Vec<Group> = named.map(|(name, group)| Group { name, ..group }).collect();
    groups.sort_by(|a, b| {
        let order = |group: &Group| (group.saving.saved_pages, group.saving.pages);
        let (a, b) = (order(a), order(b));
        b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1))
    });
    groups
}

/// What else the machine's merge domain could be.
const OTHERS: [Mode; count::OTHERS] = [Mode::User, Mode::Global];

/// The domains of processes, where the machine's is this.
fn numbered(subjects: &[Option<Arc<Subject>>], mode: Mode) -> Domains {
    let mut numbers = BTreeMap::new();
    let domain = |subject: &Option<Arc<Subject>>| subject.as_ref()?.owner.domain(mode).ok();
    subjects
        .iter()
        .map(|subject| {
            let next = numbers.len();
            Some(*numbers.entry(domain(subject)?).or_insert(next))
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
pub fn cpu_time() -> f64 {
    CpuClock::PROCESS.read().as_secs_f64()
}

/// So that they grow without being copied, and leave no holes. Else glibc keeps ever larger ones with the small.
fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers only.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}

fn show(report: &Report, left_out: &Crowd) -> Result<()> {
    let size = |pages: f64| output::bytes((pages * report.page_size as f64) as i64);
    let row = |name: String, saving: &Saving| {
        let share = saving.share();
        let share = share.map_or("-".into(), |share| format!("{share:.0} %"));
        vec![name, size(saving.pages), size(saving.saved_pages), share]
    };
    let counted = report.by != By::Process;
    let with_count = |mut row: Vec<String>, count: usize| {
        if counted {
            row.insert(1, count.to_string());
        }
        row
    };
    let shown = report.groups.iter().take(FEW);
    let mut rows: Vec<_> = shown
        .map(|group| with_count(row(group.name.clone(), &group.saving), group.processes))
        .collect();
    let left = report.groups.len().saturating_sub(FEW);
    if left > 0 {
        let rest = report.groups.iter().skip(FEW);
        let (mut count, mut sum) = (0, Saving::default());
        for group in rest {
            count += group.processes;
            sum.add(group.saving);
        }
        rows.push(with_count(
            row(format!("{left} more, see --json"), &sum),
            count,
        ));
    }
    if report.groups.len() > 1 {
        let all = row("all".into(), &report.within_domains);
        rows.push(with_count(all, report.processes.len()));
    }
    let head = [report.by.name(), "processes", "private memory", "saved", ""];
    let head: Vec<&str> = (head.into_iter().enumerate())
        .filter(|(column, _)| counted || *column != 1)
        .map(|(_, name)| name)
        .collect();
    output::table(&head, &rows)?;
    output::line("")?;
    let mut rows: Vec<_> = (KINDS.iter())
        .filter_map(|kind| Some(row((*kind).into(), report.kinds.get(kind)?)))
        .collect();
    rows.push(row("of all that: pages of zeros".into(), &report.zero));
    output::table(&["kind", "private memory", "saved", ""], &rows)?;
    output::line("")?;
    let own = format!("as domains are ({})", report.domain);
    let mut rows = vec![row(own, &report.within_domains)];
    for (mode, name, saving) in [
        (Mode::User, "within each user (user)", &report.within_users),
        (Mode::Global, "across users (global)", &report.across_users),
    ] {
        if report.domain != mode.name() {
            rows.push(row(name.into(), saving));
        }
    }
    if let Some(stable) = &report.stable {
        rows.push(row("as domains are, unchanged".into(), stable));
    }
    output::table(&["merging", "private memory", "saved", ""], &rows)?;
    let more = report.within_users.saved_pages - report.within_domains.saved_pages;
    if report.domain == Mode::Cgroup.name() && more > 0.01 * report.within_users.pages {
        output::line(&format!(
            "{} more where the control groups of a user share: echo user > /sys/kernel/mm/sksm/domain",
            size(more)
        ))?;
    }
    if let Some(sentence) = report.nodes.sentence() {
        output::line(&sentence)?;
    }
    if report.huge_pages > 0 {
        output::line(&format!(
            "{} are in {} huge pages, of which a merge splits those that it takes many pages of",
            output::bytes(report.left.huge_bytes as i64),
            report.huge_pages
        ))?;
    }
    for sentence in report.left.sentences() {
        output::line(&output::clean(&sentence))?;
    }
    left_out.tell("left out");
    let (mut apart, mut undumpable) = (Crowd::default(), Crowd::default());
    for row in &report.processes {
        if let Some(why) = &row.apart {
            apart.add(row.pid, &row.name, why);
        } else if row.undumpable {
            undumpable.add(row.pid, &row.name, reason::NOT_DUMPABLE);
        }
    }
    apart.tell("merge with nobody");
    undumpable.tell("left alone");
    if report.maybe_shared_pages > 0 {
        let how = match rights::is_root() {
            true => "CAP_SYS_ADMIN would tell",
            false => "run as root to tell",
        };
        output::note(&format!(
            "{} may be shared since a fork with processes that were not looked at, which would keep it; {how}",
            size(report.maybe_shared_pages as f64)
        ));
    }
    Ok(())
}
