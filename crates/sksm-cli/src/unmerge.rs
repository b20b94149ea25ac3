//! The verb `unmerge`.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use sksm::{
    Error, Mapping, MergeStatistics, Partial, ProcessStatistics, Region, Support, SystemStatistics,
    unmerge_remote_each,
};

use crate::output;
use crate::work::{self, Done, Verb, Whom};

/// Undoes all merges of the machine when 1 is written to it.
const MACHINE: &str = "/sys/kernel/mm/sksm/unmerge";

struct Unmerge;

/// What was undone of a process.
#[derive(Serialize, Default)]
struct Effect {
    /// Its memory in merged pages before.
    merged_bytes: u64,
    /// What SKSM and KSM had made the zero page before; none where the kernel does not tell.
    zero_bytes: Option<i64>,
    /// What it had in swap space before. Merged pages may be among it, which nobody tells.
    swapped_bytes: u64,
    /// By how much both have shrunk, and what came out of swap space for it.
    unmerged_bytes: i64,
}

impl Effect {
    fn of(pid: u32) -> Result<Self, Error> {
        let statistics = ProcessStatistics::of(pid)?;
        let pages = MergeStatistics::of(pid).ok().and_then(|all| all.zero_pages);
        Ok(Effect {
            merged_bytes: statistics.ksm,
            zero_bytes: pages.map(|pages| pages * sksm::page_size() as i64),
            swapped_bytes: statistics.swapped,
            unmerged_bytes: 0,
        })
    }

    /// Merged pages and zero pages.
    fn all(&self) -> i64 {
        self.merged_bytes as i64 + self.zero_bytes.unwrap_or(0)
    }
}

impl Verb for Unmerge {
    type Effect = Effect;
    const DOING: &'static str = "giving pages their own copies";
    const NOTHING: &'static str = "every mapping was refused; nothing was undone";

    fn choose(&self, pid: u32, mappings: &mut Vec<Mapping>) -> Result<Effect, Error> {
        let effect = Effect::of(pid)?;
        // Zero pages show in no mapping, so that any may have them.
        let anywhere = effect.zero_bytes != Some(0);
        mappings.retain(|mapping| {
            let has = mapping.statistics.ksm > 0 || mapping.statistics.swapped > 0;
            mapping.may_be_merged() && (anywhere || has)
        });
        Ok(effect)
    }

    fn advise(pidfd: BorrowedFd<'_>, regions: &[Region]) -> Result<Partial, Error> {
        unmerge_remote_each(pidfd, regions)
    }

    fn changed(&self, pid: u32, effect: &mut Effect) -> Result<bool, Error> {
        let after = Effect::of(pid)?;
        let back = effect.swapped_bytes.saturating_sub(after.swapped_bytes);
        effect.unmerged_bytes = effect.all() - after.all() + back as i64;
        Ok(true)
    }
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// Whether the kernel did it to all at once; then `processes` is empty.
    whole_machine: bool,
    processes: Done<Unmerge>,
    /// By how much the anonymous memory of the whole system has grown meanwhile.
    grown_bytes: i64,
}

pub fn run(whom: Whom, json: bool) -> Result<ExitCode> {
    let required = match whom.dry_run {
        true => Ok(()),
        false => sksm::require(),
    };
    if let Err(error) = required {
        let undecided = matches!(error, Error::Undecided { .. });
        let error = anyhow::Error::from(error);
        return Err(match sksm::support() {
            _ if undecided => error,
            Support::Ksm => error.context(
                "nothing is merged by SKSM here; to undo what KSM did: echo 2 > /sys/kernel/mm/ksm/run",
            ),
            _ => error.context("nothing is merged here"),
        });
    }
    let before = work::anonymous_pages();
    let machine = match whom.targets.everything() && !whom.dry_run {
        true => open_machine()?,
        false => None,
    };
    let whole_machine = machine.is_some();
    let undone = machine.map(undo_machine).transpose()?;
    let processes = match whole_machine {
        true => work::none(),
        false => work::each(&Unmerge, &whom.targets.choose()?, whom.dry_run),
    };
    let report = Report {
        dry_run: whom.dry_run,
        whole_machine,
        processes,
        grown_bytes: (work::anonymous_pages() - before) * sksm::page_size() as i64,
    };
    if json {
        output::json(&report)?;
    } else {
        show(&report, undone)?;
    }
    report.processes.status()
}

/// None where this command may not, and says why it goes on process by process.
fn open_machine() -> Result<Option<File>> {
    match File::options().write(true).open(MACHINE) {
        Ok(file) => Ok(Some(file)),
        Err(error) => {
            let expected = matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::NotFound | ErrorKind::ReadOnlyFilesystem
            );
            if !expected {
                return Err(error).with_context(|| format!("cannot open {MACHINE}"));
            }
            output::note(&format!(
                "cannot write {MACHINE} ({error}): asks for each process by itself"
            ));
            Ok(None)
        }
    }
}

/// What the machine has to undo: pages that are shared or ready to be, also in swap space, and zero pages.
fn merged_pages() -> u64 {
    let counters = SystemStatistics::sksm().unwrap_or_default();
    let pages = [
        "pages_shared",
        "pages_unshared",
        "pages_sharing",
        "pages_asleep",
        "pages_zero",
    ]
    .map(|name| counters.get(name).unwrap_or(0));
    u64::try_from(pages.iter().sum::<i64>()).unwrap_or(0)
}

/// Undoes all, and tells how many pages that were.
fn undo_machine(mut file: File) -> Result<u64> {
    let all = merged_pages();
    let bar = output::progress(Unmerge::DOING, all);
    let done = std::thread::scope(|scope| {
        let writer = scope.spawn(|| file.write_all(b"1"));
        while !writer.is_finished() {
            bar.set_position(all.saturating_sub(merged_pages()));
            std::thread::sleep(Duration::from_millis(50));
        }
        writer.join()
    });
    bar.finish_and_clear();
    match done {
        Ok(done) => done.with_context(|| {
            format!("writing 1 to {MACHINE} ended early: what was undone stays so, call again")
        })?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    Ok(all.saturating_sub(merged_pages()))
}

fn show(report: &Report, undone: Option<u64>) -> Result<()> {
    if let Some(pages) = undone {
        output::line(&match pages {
            0 => format!("nothing to undo: there are no merged pages on this machine ({MACHINE})"),
            _ => format!("the whole machine, by {MACHINE}: {pages} pages are merged no more"),
        })?;
        return output::line(&work::growth(report.grown_bytes, Ordering::Greater));
    }
    let rows: Vec<Vec<String>> = (report.processes.rows.iter())
        .map(|row| {
            let zero = row.effect.zero_bytes;
            vec![
                format!("{} {}", row.pid, row.name),
                row.mappings.to_string(),
                output::bytes(row.effect.merged_bytes as i64),
                zero.map_or("-".into(), output::bytes),
                output::bytes(row.effect.unmerged_bytes),
            ]
        })
        .collect();
    let head = ["process", "mappings", "merged", "zero pages", "undone"];
    output::table(&head, &rows)?;
    report.processes.complain();
    let effects = || report.processes.rows.iter().map(|row| &row.effect);
    let swapped: u64 = effects().map(|effect| effect.swapped_bytes).sum();
    let asleep = SystemStatistics::sksm().and_then(|all| all.get("pages_asleep"));
    if report.dry_run && swapped > 0 && asleep.unwrap_or(0) > 0 {
        output::line(&format!(
            "{} are in swap space: merged pages among them would come back apart",
            output::bytes(swapped as i64)
        ))?;
        return output::line("nothing was undone");
    }
    if effects().all(|effect| effect.all() == 0 && effect.unmerged_bytes == 0) {
        return output::line(
            "nothing to undo: none of these processes has merged pages, or zero pages that merging put there",
        );
    }
    if report.dry_run {
        return output::line("nothing was undone");
    }
    output::line(&work::growth(report.grown_bytes, Ordering::Greater))
}
