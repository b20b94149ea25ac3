//! Work on processes one after the other: what `merge` and `unmerge` have in common.

use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use sksm::{Error, Mapping, Partial, Process, Region};

use crate::reason::{self, Crowd};
use crate::target::{self, Chosen, Targets, name_of};
use crate::{exit, output};

/// Which processes, and whether it is meant.
#[derive(clap::Args)]
#[command(group(target::required()))]
#[group(skip)]
pub struct Whom {
    #[command(flatten)]
    pub targets: Targets,
    /// Only tell what would be looked at
    #[arg(long)]
    pub dry_run: bool,
}

/// What is done to processes.
pub trait Verb {
    /// What it does to one of them, beyond what a row has for all verbs.
    type Effect: Serialize + Default;
    const DOING: &'static str;
    /// Why it failed where all was refused without an error.
    const NOTHING: &'static str;

    /// Leaves the mappings that are meant, and looks at how they are before.
    fn choose(&self, pid: u32, mappings: &mut Vec<Mapping>) -> Result<Self::Effect, Error>;
    /// What the kernel is asked for of them.
    fn parts(&self, _pid: u32, mappings: &[Mapping]) -> Vec<Part> {
        mappings.iter().map(Part::from).collect()
    }
    fn advise(pidfd: BorrowedFd<'_>, regions: &[Region]) -> Result<Partial, Error>;
    /// Looks at what has changed since; false if the kernel took the advice and did nothing.
    fn changed(&self, pid: u32, effect: &mut Self::Effect) -> Result<bool, Error>;
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    pub region: Region,
    /// Private memory that is present.
    pub private: u64,
}

impl From<&Mapping> for Part {
    fn from(mapping: &Mapping) -> Self {
        Part {
            region: mapping.region,
            private: mapping.statistics.anonymous,
        }
    }
}

/// What was done to one process.
#[derive(Serialize, Default)]
pub struct Row<T> {
    pub pid: u32,
    pub name: String,
    pub mappings: usize,
    #[serde(flatten)]
    pub effect: T,
    /// The first of them.
    refused: Vec<String>,
    refused_count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    outcome: Outcome,
    /// Whether it was asked for by name, so that it is no success without it.
    #[serde(skip)]
    must: bool,
}

/// A process may unmap while it is looked at, and be refused in thousands of pieces.
const REFUSED_KEPT: usize = 100;
const REFUSED_SHOWN: usize = 3;

impl<T> Row<T> {
    fn refuse(&mut self, problems: impl Iterator<Item = String>) {
        for problem in problems {
            self.refused_count += 1;
            if self.refused.len() < REFUSED_KEPT {
                self.refused.push(problem);
            }
        }
    }
}

/// Whether anything could be done to a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    fn of_all<T>(rows: &[Row<T>]) -> Self {
        let done = |row: &Row<T>| row.outcome == Outcome::Done;
        match rows.iter().all(|row| row.outcome == Outcome::Nothing) {
            true if !rows.is_empty() => Outcome::Nothing,
            _ if rows.iter().all(|row| done(row) || !row.must) => Outcome::Done,
            _ => Outcome::Partly,
        }
    }
}

/// What was done to all.
#[derive(Serialize)]
#[serde(transparent, bound = "")]
pub struct Done<V: Verb> {
    pub rows: Vec<Row<V::Effect>>,
    /// The first reason why nothing could be done to one.
    #[serde(skip)]
    first: Option<Error>,
}

/// Where it was done otherwise.
pub fn none<V: Verb>() -> Done<V> {
    Done {
        rows: Vec::new(),
        first: None,
    }
}

/// Does it to each of them.
pub fn each<V: Verb>(verb: &V, chosen: &Chosen, dry_run: bool) -> Done<V> {
    let total = (chosen.pids)
        .iter()
        .map(|pid| target::bytes_of(*pid, target::PRIVATE))
        .sum();
    let bar = output::progress(V::DOING, total);
    let mut done = none();
    for pid in chosen.pids.iter().copied() {
        let mut row = Row {
            pid,
            name: name_of(pid),
            must: chosen.must(pid, false),
            ..Row::default()
        };
        if let Err(error) = work(verb, &mut row, &bar, dry_run) {
            row.error = Some(reason::of(pid, &error));
            row.outcome = Outcome::Nothing;
            row.must = chosen.must(pid, matches!(error, Error::Gone { .. }));
            done.first.get_or_insert(error);
        }
        done.rows.push(row);
    }
    bar.finish_and_clear();
    done
}

fn work<V: Verb>(
    verb: &V,
    row: &mut Row<V::Effect>,
    bar: &ProgressBar,
    dry_run: bool,
) -> Result<(), Error> {
    let process = Process::open(row.pid)?;
    let mut mappings = process.mappings()?;
    row.effect = verb.choose(row.pid, &mut mappings)?;
    row.mappings = mappings.len();
    let Some(pidfd) = process.pidfd().filter(|_| !dry_run) else {
        return Ok(());
    };
    let mut advised = 0;
    for batch in batches(&verb.parts(row.pid, &mappings)) {
        let done = V::advise(pidfd, &batch.regions)?;
        advised += done.advised;
        // It was done to the parts of a range with a hole in it that are mapped.
        let whole = |error: &&Error| !matches!(error, Error::Hole { .. });
        if done.refused.iter().any(|error| whole(&error)) {
            row.outcome = Outcome::Partly;
        }
        row.refuse(done.refused.iter().map(Error::to_string));
        bar.inc(batch.private);
    }
    let took = verb.changed(row.pid, &mut row.effect)?;
    if !took || advised == 0 && !row.refused.is_empty() {
        row.outcome = Outcome::Nothing;
    }
    Ok(())
}

impl<V: Verb> Done<V> {
    /// Says what was refused, and by whom; not of what ends it, which is said last.
    pub fn complain(&self) {
        if Outcome::of_all(&self.rows) != Outcome::Nothing {
            self.errors().tell("left out");
        }
        for row in &self.rows {
            for problem in row.refused.iter().take(REFUSED_SHOWN) {
                output::note(&format!("{} {}: {problem}", row.pid, row.name));
            }
            let more = row.refused_count.saturating_sub(REFUSED_SHOWN);
            if more > 0 {
                output::note(&format!("{} {}: {more} more ranges", row.pid, row.name));
            }
        }
    }

    fn errors(&self) -> Crowd {
        let mut crowd = Crowd::default();
        for row in &self.rows {
            if let Some(error) = &row.error {
                crowd.add(row.pid, &row.name, error);
            }
        }
        crowd
    }

    pub fn status(self) -> Result<ExitCode> {
        match (Outcome::of_all(&self.rows), self.first) {
            (Outcome::Done, _) => Ok(ExitCode::SUCCESS),
            (Outcome::Partly, _) => Ok(ExitCode::from(exit::PARTLY)),
            // The first reason stands for all.
            (Outcome::Nothing, Some(error)) => Err(exit::because(&error, &self.errors().lines())),
            (Outcome::Nothing, None) => bail!("{}", V::NOTHING),
        }
    }
}

/// So many bytes of addresses are done by one call, so that the progress is seen.
const AT_ONCE: usize = 64 << 20;

/// What one call does.
#[derive(Debug, Default, PartialEq)]
struct Batch {
    regions: Vec<Region>,
    len: usize,
    /// About so much of it is present.
    private: u64,
}

/// Cuts long mappings, and puts short ones together.
fn batches(parts: &[Part]) -> Vec<Batch> {
    let mut batches = vec![Batch::default()];
    for Part { region, private } in parts {
        let Region { start, len, .. } = *region;
        // Of those that are all but empty, however long, there is nothing to see.
        let step = match *private {
            0 => len.max(1),
            _ => AT_ONCE,
        };
        for offset in (0..len).step_by(step) {
            let part = (len - offset).min(step);
            let counted = if step == AT_ONCE { part } else { 0 };
            if batches
                .last()
                .is_none_or(|batch| batch.len + counted > AT_ONCE)
            {
                batches.push(Batch::default());
            }
            let Some(batch) = batches.last_mut() else {
                continue;
            };
            batch.regions.push(Region::new(start + offset, part));
            batch.len += counted;
            let private = u128::from(*private) * part as u128 / len as u128;
            batch.private += private as u64;
        }
    }
    batches.retain(|batch| !batch.regions.is_empty());
    batches
}

/// In pages, of the whole system; 0 if it cannot be read, which only costs a figure.
pub fn anonymous_pages() -> i64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("nr_anon_pages "))
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

/// By how much it has grown, in words.
pub fn growth(bytes: i64, wanted: std::cmp::Ordering) -> String {
    let amount = output::bytes(bytes.abs());
    let what = match bytes {
        ..0 => "shrank by",
        0 => return "anonymous memory of the system is as much as before".into(),
        1.. => "grew by",
    };
    // What else went on outweighed it.
    let meanwhile = match bytes.cmp(&0) == wanted {
        true => "",
        false => " meanwhile",
    };
    format!("anonymous memory of the system {what} {amount}{meanwhile}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let rows = |must| {
                let row = |outcome: &Outcome| Row::<()> {
                    outcome: *outcome,
                    must,
                    ..Row::default()
                };
                outcomes.iter().map(row).collect::<Vec<_>>()
            };
            assert!(Outcome::of_all(&rows(true)) == expected);
            // Who only happens to be there may refuse.
            let expected = match expected {
                Partly => Done,
                expected => expected,
            };
            assert!(Outcome::of_all(&rows(false)) == expected);
        }
    }

    /// Every byte once, in order, in calls that are not too long.
    #[test]
    fn mappings_are_done_in_parts() {
        let mapping = |start, len| Part {
            region: Region::new(start, len),
            private: 1 << 20,
        };
        let (small, large) = (4096, 3 * AT_ONCE + 4096);
        let mut mappings = [
            mapping(small, small),
            mapping(1 << 20, small),
            mapping(1 << 30, large),
            mapping(1 << 40, small),
        ];
        let joined = |batches: Vec<Batch>| {
            let regions = batches.into_iter().flat_map(|batch| batch.regions);
            let mut joined: Vec<Region> = Vec::new();
            for region in regions {
                match joined.last_mut() {
                    Some(last) if last.end() == region.start => last.len += region.len,
                    _ => joined.push(region),
                }
            }
            joined
        };
        let parts = batches(&mappings);
        assert_eq!(parts.len(), 5);
        assert!(parts.iter().all(|batch| batch.len <= AT_ONCE));
        assert_eq!(parts[0].regions.len(), 2);
        let expected: Vec<Region> = mappings.iter().map(|mapping| mapping.region).collect();
        assert_eq!(joined(parts), expected);
        // A reservation, where there may be zero pages at most, is one part.
        mappings[2].private = 0;
        let parts = batches(&mappings);
        assert_eq!(parts.len(), 1);
        assert_eq!(joined(parts), expected);
    }

    #[test]
    fn what_else_went_on_is_told_apart() {
        use std::cmp::Ordering::{Greater, Less};
        let less = "anonymous memory of the system shrank by 8 KiB";
        assert_eq!(growth(-8192, Less), less);
        assert_eq!(growth(-8192, Greater), format!("{less} meanwhile"));
        assert!(growth(8192, Greater).ends_with("grew by 8 KiB"));
        assert!(growth(0, Less).contains("as before"));
    }
}
