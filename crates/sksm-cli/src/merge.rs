//! The verb `merge`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use sksm::{
    Error, Kinds, Mapping, MergeStatistics, Partial, ProcessStatistics, Region, SystemStatistics,
    merge_remote_each,
};

use crate::census::Census;
use crate::domain::{Mode, Names, Owner};
use crate::estimate::huge_page;
use crate::estimate::nodes::Nodes;
use crate::estimate::twins::{self, Taken};
use crate::reason::{Crowd, NOT_DUMPABLE};
pub use crate::what::What;
use crate::work::{self, Done, Part, Row, Verb, Whom};
use crate::{output, support};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    whom: Whom,
    /// What to merge: a list of text, data, heap, stack
    ///
    /// Of programs that run already data and heap are written. `sksm run`, which merges before `main`, takes text alone if nothing is said.
    #[arg(long, default_value = What::DEFAULT)]
    what: What,
    /// Take every page and split every huge one, whether anything equal is there or not
    ///
    /// Without it only pages are taken that have a twin in one of these processes, or among what is merged already, and a huge page
    /// only if an eighth of its pages have one. What has none yet is ready for those that come later with it, and takes memory
    /// until they do.
    #[arg(long, conflicts_with = "settle")]
    everything: bool,
    /// Look a second time after so many seconds, and take only what has stayed the same
    #[arg(long, value_name = "SECONDS")]
    settle: Option<u64>,
    /// Tell what is merged still so many seconds after the merge
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run")]
    check: Option<u64>,
}

struct Merge {
    kinds: Kinds,
    mode: Option<Mode>,
    /// None where everything is taken.
    twins: Option<BTreeMap<u32, Taken>>,
}

/// What merging did to a process. What the kernel does not tell is none.
#[derive(Serialize, Default)]
struct Effect {
    /// Private pages in its mappings.
    pages: u64,
    /// So many of them the kernel was asked for; of everything, as many as there are.
    taken_pages: u64,
    /// By how much its merged memory has grown; not counting pages that became the zero page.
    merged_bytes: i64,
    /// Of that: shared with pages that were there already, which is what is saved.
    saved_bytes: Option<i64>,
    /// So many of its pages became merged pages, whether somebody shares them by now or not.
    published_bytes: Option<i64>,
    /// What became the zero page.
    zero_bytes: Option<i64>,
    /// All that was saved, less what the kernel notes down for it.
    net_bytes: Option<i64>,
    /// Huge pages that were split, or with a dry run would be.
    split_huge_pages: u64,
    /// Huge pages that were left whole, as few of their pages have a twin; and how many those are.
    whole_huge_pages: u64,
    spared_pages: u64,
    /// So many pages the kernel found in use, in all processes meanwhile.
    busy_pages: Option<i64>,
    /// So many pages of addresses the kernel passed over, in all processes meanwhile; none where it does not count them.
    passed_over_pages: Option<i64>,
    /// Why it passes over memory of this process, as far as that can be told.
    passed_over_reasons: Vec<String>,
    left: Census,
    /// By how much its merged memory has grown still, when it was looked at again.
    merged_later_bytes: Option<i64>,
    #[serde(skip)]
    before: Before,
}

#[derive(Default)]
struct Before {
    merged_bytes: u64,
    counts: MergeStatistics,
    refused_pages: Option<i64>,
    busy_pages: Option<i64>,
    /// What is asked for, in pages of addresses.
    asked_pages: i64,
    /// Whether nothing of the process merges.
    hopeless: bool,
}

impl Verb for Merge {
    type Effect = Effect;
    const DOING: &'static str = "merging";
    const NOTHING: &'static str =
        "every mapping was refused, passed over or left alone; nothing was merged";

    fn choose(&self, pid: u32, mappings: &mut Vec<Mapping>) -> Result<Effect, Error> {
        // What cannot be read has no twins that anybody knows of.
        if self.twins.is_some() {
            twins::readable(pid)?;
        }
        mappings.retain(|mapping| {
            self.kinds.has(mapping.kind) && mapping.statistics.anonymous > 0 && mapping.mergeable
        });
        let page = sksm::page_size();
        let bytes: u64 = mappings.iter().map(|one| one.statistics.anonymous).sum();
        let parts = self.parts(pid, mappings);
        let asked: usize = parts.iter().map(|one| one.region.len / page).sum();
        let private: u64 = parts.iter().map(|one| one.private).sum();
        let taken = self.twins.as_ref().and_then(|twins| twins.get(&pid));
        let left = Census::of(pid, self.kinds);
        let (passed_over_reasons, hopeless) = reasons(pid, mappings, self.mode);
        Ok(Effect {
            pages: bytes / page as u64,
            taken_pages: private / page as u64,
            split_huge_pages: match self.twins {
                None => left.huge_bytes / huge_page(),
                Some(_) => taken.map_or(0, |taken| taken.split),
            },
            whole_huge_pages: taken.map_or(0, |taken| taken.whole),
            spared_pages: taken.map_or(0, |taken| taken.spared_pages),
            left,
            passed_over_reasons,
            before: Before {
                merged_bytes: ProcessStatistics::of(pid)?.ksm,
                counts: MergeStatistics::of(pid).unwrap_or_default(),
                refused_pages: counter("pages_refused"),
                busy_pages: counter("pages_busy"),
                asked_pages: asked as i64,
                hopeless,
            },
            ..Effect::default()
        })
    }

    fn parts(&self, pid: u32, mappings: &[Mapping]) -> Vec<Part> {
        let Some(twins) = &self.twins else {
            return mappings.iter().map(Part::from).collect();
        };
        let taken = twins.get(&pid).map_or(&[][..], |taken| &taken.ranges);
        mappings
            .iter()
            .flat_map(|mapping| within(taken, mapping.region))
            .collect()
    }

    fn advise(pidfd: BorrowedFd<'_>, regions: &[Region]) -> Result<Partial, Error> {
        merge_remote_each(pidfd, regions)
    }

    fn changed(&self, pid: u32, effect: &mut Effect) -> Result<bool, Error> {
        let before = &effect.before;
        let page = sksm::page_size() as i64;
        effect.merged_bytes = ProcessStatistics::of(pid)?.ksm as i64 - before.merged_bytes as i64;
        let counts = MergeStatistics::of(pid).unwrap_or_default();
        let grown = |now: Option<i64>, before: Option<i64>| Some(now? - before?);
        let pages = |now, before| grown(now, before).map(|pages| pages * page);
        effect.saved_bytes = pages(counts.merged_pages, before.counts.merged_pages);
        effect.published_bytes = pages(counts.published_pages, before.counts.published_pages);
        effect.zero_bytes = pages(counts.zero_pages, before.counts.zero_pages);
        let profit = grown(counts.profit, before.counts.profit);
        effect.net_bytes = profit.map(|profit| profit + effect.zero_bytes.unwrap_or(0));
        effect.busy_pages = grown(counter("pages_busy"), before.busy_pages);
        let now = Census::of(pid, self.kinds).huge_bytes;
        effect.split_huge_pages = effect.left.huge_bytes.saturating_sub(now) / huge_page();
        let passed_over = grown(counter("pages_refused"), before.refused_pages);
        effect.passed_over_pages = passed_over;
        let asked = before.asked_pages;
        let all = passed_over.is_some_and(|pages| pages > 0 && pages >= asked && asked > 0);
        if all && effect.passed_over_reasons.is_empty() {
            let reason = format!("it is likely {NOT_DUMPABLE}");
            effect.passed_over_reasons.push(reason);
        }
        Ok(!(all || before.hopeless) || effect.merged_bytes > 0)
    }
}

/// Those of these pages, given as ranges of their numbers, that are in a region.
fn within(taken: &[std::ops::Range<u64>], region: Region) -> impl Iterator<Item = Part> + use<'_> {
    let page = sksm::page_size();
    let (start, end) = ((region.start / page) as u64, (region.end() / page) as u64);
    let first = taken.partition_point(|range| range.end <= start);
    let inside = taken
        .iter()
        .skip(first)
        .take_while(move |range| range.start < end);
    inside.map(move |range| {
        let (start, end) = (range.start.max(start), range.end.min(end));
        let len = (end - start) as usize * page;
        Part {
            region: Region::new(start as usize * page, len),
            private: len as u64,
        }
    })
}

/// Of all calls so far.
fn counter(name: &str) -> Option<i64> {
    SystemStatistics::sksm()?.get(name)
}

/// Why the kernel passes over memory of this process, and whether it does so over all of it.
fn reasons(pid: u32, mappings: &[Mapping], mode: Option<Mode>) -> (Vec<String>, bool) {
    let mut reasons = Vec::new();
    let mut all = false;
    if let Ok(owner) = Owner::of(pid) {
        match mode.map(|mode| owner.domain(mode)) {
            Some(Err(apart)) => {
                reasons.push(format!(
                    "nothing of it merges, as {apart}; {}",
                    apart.remedy()
                ));
                return (reasons, true);
            }
            _ if owner.left_alone(pid) => {
                reasons.push(format!("it is {NOT_DUMPABLE}"));
                all = true;
            }
            _ => {}
        }
    }
    let own = mappings.iter().filter(|mapping| mapping.passed_over);
    let bytes: u64 = own.map(|mapping| mapping.statistics.anonymous).sum();
    if bytes > 0 {
        reasons.push(format!(
            "{} are locked, left out of dumps or wiped on fork, which only the process itself may merge: see `sksm run`",
            output::bytes(bytes as i64)
        ));
    }
    (reasons, all)
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// Whether every page was taken, also without a twin.
    everything: bool,
    /// Whether only pages of one NUMA node were taken for twins.
    within_nodes: bool,
    #[serde(skip)]
    nodes: Option<Nodes>,
    /// Whether what changed within so many seconds was left.
    #[serde(skip)]
    settle: Option<u64>,
    processes: Done<Merge>,
    /// How many of the processes are in each domain.
    domains: Vec<Domain>,
    /// By how much the anonymous memory of the whole system has shrunk meanwhile.
    saved_bytes: i64,
    /// By how much merged pages that nobody shares yet have grown in the whole system meanwhile: what one process published, the next
    /// may have joined.
    unshared_bytes: Option<i64>,
}

#[derive(Serialize)]
struct Domain {
    name: String,
    processes: usize,
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let dry_run = args.whom.dry_run;
    if !dry_run {
        support::require()?;
    }
    let chosen = args.whom.targets.choose()?;
    let look = || twins::find(&chosen.pids, args.what.kinds, args.settle);
    let verb = Merge {
        kinds: args.what.kinds,
        mode: Mode::read(),
        twins: (!args.everything).then(look),
    };
    let nodes = verb.twins.as_ref().map(|_| Nodes::of_this_look());
    let page = sksm::page_size() as i64;
    let (before, unshared) = (work::anonymous_pages(), counter("pages_unshared"));
    let mut processes = work::each(&verb, &chosen, dry_run);
    let saved = (before - work::anonymous_pages()) * page;
    let more = |before| Some((counter("pages_unshared")? - before) * page);
    let unshared = unshared.filter(|_| !dry_run).and_then(more);
    if let Some(seconds) = args.check {
        std::thread::sleep(Duration::from_secs(seconds));
        for row in &mut processes.rows {
            let now = ProcessStatistics::of(row.pid).ok();
            let grown = now.map(|now| now.ksm as i64 - row.effect.before.merged_bytes as i64);
            row.effect.merged_later_bytes = grown;
        }
    }
    let report = Report {
        dry_run,
        everything: args.everything,
        within_nodes: nodes == Some(Nodes::Apart),
        nodes,
        settle: args.settle,
        saved_bytes: saved,
        unshared_bytes: unshared,
        domains: domains(&processes.rows, verb.mode.unwrap_or(Mode::Cgroup)),
        processes,
    };
    if json {
        output::json(&report)?;
    } else {
        show(&report, args.check)?;
    }
    report.processes.status()
}

/// The largest first.
fn domains<T>(rows: &[Row<T>], mode: Mode) -> Vec<Domain> {
    let names = Names::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows {
        if let Some(Ok(domain)) = Owner::of(row.pid).ok().map(|owner| owner.domain(mode)) {
            *counts.entry(names.of(&domain)).or_default() += 1;
        }
    }
    let all = counts.into_iter();
    let mut all: Vec<Domain> = all
        .map(|(name, processes)| Domain { name, processes })
        .collect();
    all.sort_by_key(|domain| std::cmp::Reverse(domain.processes));
    all
}

/// So many processes are shown.
const SHOWN: usize = 20;

fn show(report: &Report, check: Option<u64>) -> Result<()> {
    let page = sksm::page_size() as i64;
    let told = |bytes: Option<i64>| bytes.map_or("-".into(), output::bytes);
    let row = |name: String, pages: [u64; 2], effects: [Option<i64>; 4]| {
        let mut cells = vec![name];
        cells.extend(pages.map(|pages| output::bytes(pages as i64 * page)));
        if !report.dry_run {
            cells.extend(effects.map(told));
        }
        cells
    };
    let effects = |effect: &Effect| {
        [
            effect.saved_bytes,
            effect.zero_bytes,
            effect.published_bytes,
            effect.net_bytes,
        ]
    };
    let mut all: Vec<&Row<Effect>> = report.processes.rows.iter().collect();
    if all.len() > SHOWN {
        all.sort_by_key(|row| std::cmp::Reverse((row.effect.net_bytes, row.effect.taken_pages)));
    }
    let mut rows: Vec<Vec<String>> = (all.iter().take(SHOWN))
        .map(|one| {
            let effect = &one.effect;
            let pages = [effect.pages, effect.taken_pages];
            row(format!("{} {}", one.pid, one.name), pages, effects(effect))
        })
        .collect();
    if all.len() > 1 {
        let sum = |of: fn(&Effect) -> u64| all.iter().map(|row| of(&row.effect)).sum::<u64>();
        let mut sums = [None; 4];
        for more in all.iter().map(|row| effects(&row.effect)) {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum = more.map_or(*sum, |more| Some(sum.unwrap_or(0) + more));
            }
        }
        let name = match all.len() {
            ..=SHOWN => "all".into(),
            count => format!("all {count}, see --json"),
        };
        rows.push(row(
            name,
            [sum(|one| one.pages), sum(|one| one.taken_pages)],
            sums,
        ));
    }
    let head = [
        "process",
        "private",
        "taken",
        "saved",
        "zero pages",
        "published",
        "net",
    ];
    output::table(&head[..if report.dry_run { 3 } else { 7 }], &rows)?;
    report.processes.complain();
    let mut passed = Crowd::default();
    for row in &report.processes.rows {
        if let Some(text) = passed_over(&row.effect, report.dry_run) {
            passed.add(row.pid, &row.name, &text);
        }
    }
    passed.tell("passed over");
    for sentence in sentences(report) {
        output::line(&output::clean(&sentence))?;
    }
    if let Some(seconds) = check {
        let rows = report.processes.rows.iter();
        let sum = |of: fn(&Effect) -> i64| rows.clone().map(|row| of(&row.effect)).sum::<i64>();
        let (then, now) = (
            sum(|one| one.merged_bytes),
            sum(|one| one.merged_later_bytes.unwrap_or(0)),
        );
        output::line(&format!(
            "{seconds} s later {} of {} are merged still",
            output::bytes(now),
            output::bytes(then)
        ))?;
    }
    if report.dry_run {
        output::line("nothing was merged; `sksm estimate` tells what it would save")
    } else {
        output::line(&work::growth(-report.saved_bytes, Ordering::Less))
    }
}

/// Why not more was merged, of all processes together.
fn sentences(report: &Report) -> Vec<String> {
    let rows = report.processes.rows.iter();
    let mut left = Census::default();
    rows.clone().for_each(|row| left.and(&row.effect.left));
    let sum = |of: fn(&Effect) -> u64| rows.clone().map(|row| of(&row.effect)).sum::<u64>();
    let page = sksm::page_size() as u64;
    let size = |pages: u64| output::bytes((pages * page) as i64);
    let mut said = Vec::new();
    let spared = sum(|one| one.spared_pages);
    // Of those of which nothing may be merged that is said elsewhere.
    let alone = sum(|one| match one.before.hopeless {
        true => 0,
        false => one.pages.saturating_sub(
            one.taken_pages + one.spared_pages + one.left.left_alone() / sksm::page_size() as u64,
        ),
    });
    if !report.everything && alone > 0 {
        said.push(match report.settle {
            None => format!(
                "{} have no twin here, and were left (--everything takes them as well)",
                size(alone)
            ),
            Some(seconds) => format!(
                "{} have no twin here, or changed within {seconds} s, and were left",
                size(alone)
            ),
        });
    }
    said.extend(report.nodes.and_then(Nodes::sentence));
    if let Some(more) = report.unshared_bytes.filter(|more| *more > 0) {
        said.push(format!(
            "{} more than before are published and shared by nobody yet",
            output::bytes(more)
        ));
    }
    let (split, whole) = (
        sum(|one| one.split_huge_pages),
        sum(|one| one.whole_huge_pages),
    );
    if split > 0 {
        let was = if report.dry_run { "would be" } else { "were" };
        said.push(format!("{split} huge pages {was} split"));
    }
    if whole > 0 {
        said.push(format!(
            "{whole} huge pages stay whole: only {} in them have a twin",
            size(spared)
        ));
    }
    let busy: i64 = rows.clone().filter_map(|row| row.effect.busy_pages).sum();
    if busy > 0 {
        said.push(format!(
            "{} were in use by the kernel or a device (pinned), or shared by as many as may share one page",
            output::bytes(busy * page as i64)
        ));
    }
    if report.domains.len() > 1 {
        let shown = report.domains.iter().take(3);
        let shown: Vec<String> = shown
            .map(|one| format!("{}: {}", one.name, one.processes))
            .collect();
        let more = if report.domains.len() > 3 {
            ", ..."
        } else {
            ""
        };
        said.push(format!(
            "these processes are in {} merge domains, which share nothing with each other ({}{more}): `sksm doctor` tells of domains",
            report.domains.len(),
            shown.join(", ")
        ));
    }
    said.extend(left.sentences());
    said
}

/// What the kernel passed over, and why; nothing if there was nothing.
fn passed_over(effect: &Effect, dry_run: bool) -> Option<String> {
    let why = match effect.passed_over_reasons.as_slice() {
        [] => {
            "no reason is seen here: calls of others count too, and what changed meanwhile".into()
        }
        reasons => reasons.join("; "),
    };
    let pages = effect.passed_over_pages.unwrap_or(0);
    match dry_run {
        true if effect.passed_over_reasons.is_empty() => None,
        true => Some(format!("the kernel would pass over some of it: {why}")),
        // Known before, so that the kernel was not asked.
        false if pages <= 0 && effect.before.hopeless => Some(why),
        false if pages <= 0 => None,
        false => Some(format!(
            "the kernel passed over {pages} pages of addresses: {why}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sksm::Process;

    #[test]
    fn what_is_passed_over_is_told() {
        let mut effect = Effect::default();
        assert_eq!(passed_over(&effect, false), None);
        assert_eq!(passed_over(&effect, true), None);
        effect.passed_over_pages = Some(3);
        let text = passed_over(&effect, false).unwrap();
        assert!(
            text.contains(" 3 pages") && text.contains("no reason"),
            "{text}"
        );
        effect.passed_over_reasons = vec!["a".into(), "b".into()];
        assert!(passed_over(&effect, false).unwrap().ends_with(": a; b"));
        assert!(passed_over(&effect, true).unwrap().contains("would"));
    }

    #[test]
    fn reasons_are_looked_for() {
        let own = std::process::id();
        let mut mappings = Process::open(own).unwrap().mappings().unwrap();
        mappings.retain(|mapping| mapping.statistics.anonymous > 0 && !mapping.passed_over);
        let none = (Vec::new(), false);
        assert_eq!(reasons(own, &mappings, None), none);
        assert_eq!(reasons(own, &mappings, Some(Mode::User)), none);
        let (off, all) = reasons(own, &mappings, Some(Mode::Off));
        assert!(off[0].contains("sksm=off") && all, "{off:?}");
        mappings[0].passed_over = true;
        let (locked, all) = reasons(own, &mappings, Some(Mode::User));
        assert!(locked[0].contains("locked") && !all, "{locked:?}");
    }

    #[test]
    fn pages_are_taken_within_their_mappings() {
        let page = sksm::page_size();
        let taken = [1..3, 5..9, 12..13];
        let region = |start: usize, len: usize| Region::new(start * page, len * page);
        let found = |start, len| {
            let parts = within(&taken, region(start, len));
            parts.map(|part| part.region).collect::<Vec<_>>()
        };
        assert_eq!(found(2, 5), [region(2, 1), region(5, 2)]);
        assert_eq!(found(9, 3), []);
        assert_eq!(found(0, 20), [region(1, 2), region(5, 4), region(12, 1)]);
    }
}
