//! What the experiment measures: the JSON that `sksm-demo` prints, a line for each phase, and `cargo xtask demo` reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ksmd::Ksm;
use crate::statistics::percentile;

/// The whole experiment: the same processes in each phase, differing only in what is done to libc's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub kernel: String,
    pub cpus: usize,
    pub memory_mib: u64,
    pub processes: usize,
    pub command: String,
    /// The library whose executable pages are written and merged.
    pub library: String,
    pub text_pages: usize,
    /// Pages of the text with different contents: what cannot be fewer.
    pub text_contents: usize,
    pub page_size: usize,
    /// How many mappings a merged page may have; raised for the experiment where the default is lower.
    pub max_page_sharing: Vec<Limit>,
    /// In the order in which they ran.
    pub phases: Vec<Phase>,
    /// None without the phase with MADV_MERGE.
    pub expected: Option<Expected>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    pub engine: String,
    pub default: i64,
    pub raised_to: i64,
}

/// What is done to libc's text in every process, before its `main` and, by ksmd, later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing; no preload object either.
    Plain,
    /// Nothing; what the preload object itself costs.
    Idle,
    /// Each executable page is written once.
    Patched,
    /// The same, then MADV_MERGE.
    Merged,
    /// The same as patched, then MADV_MERGEABLE, with ksmd as it is tuned by default.
    Ksm,
    /// The same with a ksmd that never sleeps.
    KsmUnthrottled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub kind: Kind,
    /// `/proc/vmstat` before the first process was started, and with all of them asleep.
    pub nr_anon_pages_before: u64,
    pub nr_anon_pages: u64,
    pub mem_available_mib: u64,
    /// Until the last process was asleep.
    pub start_seconds: f64,
    /// Pages of libc's text that are not the file's, per process.
    pub anonymous_text_pages: Spread,
    /// Those of them that no other process maps.
    pub private_text_pages: Spread,
    /// Physical pages that hold them, over all processes.
    pub copies: usize,
    /// The advice that each process gave about its text.
    pub call: Option<Call>,
    /// Of the engine that this phase uses.
    pub counters: Option<Counters>,
    pub ksm: Option<Ksm>,
}

/// A value over all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    pub min: u64,
    pub median: u64,
    pub max: u64,
}

/// The times of a madvise call, one per process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The first process has nothing to merge with.
    pub first_ns: u64,
    pub median_ns: u64,
    pub p95_ns: u64,
    pub max_ns: u64,
    pub total_ns: u64,
    pub median_ns_per_page: f64,
    pub p95_ns_per_page: f64,
}

/// An engine's numbers in sysfs before the first process, with all of them merged, and after all of them have gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    pub before: BTreeMap<String, i64>,
    pub merged: BTreeMap<String, i64>,
    pub after: BTreeMap<String, i64>,
}

/// What must hold for the experiment to have succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    pub pass: bool,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub what: String,
    pub found: i64,
    pub wanted: i64,
    /// `found` may also be below `wanted`.
    pub at_most: bool,
    pub pass: bool,
}

impl Kind {
    /// In the order in which they run: ksmd takes its time, so it comes last, and the one that sleeps last of all.
    pub const ALL: [Kind; 6] = [
        Kind::Plain,
        Kind::Idle,
        Kind::Patched,
        Kind::Merged,
        Kind::KsmUnthrottled,
        Kind::Ksm,
    ];

    /// Whether ksmd does the work.
    pub fn by_ksmd(self) -> bool {
        matches!(self, Kind::Ksm | Kind::KsmUnthrottled)
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Idle => "idle",
            Kind::Patched => "patched",
            Kind::Merged => "merged",
            Kind::Ksm => "ksm",
            Kind::KsmUnthrottled => "ksm-unthrottled",
        }
    }
}

impl Report {
    pub fn phase(&self, kind: Kind) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.kind == kind)
    }
}

impl Spread {
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        Self {
            min: percentile(&values, 0),
            median: percentile(&values, 50),
            max: percentile(&values, 100),
        }
    }
}

impl Call {
    /// None without any call.
    pub fn of(times: &[u64], pages: usize) -> Option<Self> {
        let first_ns = *times.first()?;
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let (median_ns, p95_ns) = (percentile(&sorted, 50), percentile(&sorted, 95));
        let per_page = |ns: u64| ns as f64 / pages.max(1) as f64;
        Some(Self {
            first_ns,
            median_ns,
            p95_ns,
            max_ns: percentile(&sorted, 100),
            total_ns: sorted.iter().sum(),
            median_ns_per_page: per_page(median_ns),
            p95_ns_per_page: per_page(p95_ns),
        })
    }
}

impl Expected {
    pub fn of(checks: Vec<Check>) -> Self {
        Self {
            pass: checks.iter().all(|check| check.pass),
            checks,
        }
    }
}

impl Check {
    pub fn exactly(what: impl Into<String>, found: i64, wanted: i64) -> Self {
        Self {
            what: what.into(),
            found,
            wanted,
            at_most: false,
            pass: found == wanted,
        }
    }

    pub fn at_most(what: impl Into<String>, found: i64, wanted: i64) -> Self {
        Self {
            what: what.into(),
            found,
            wanted,
            at_most: true,
            pass: found <= wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_keep_the_first_and_sort_the_rest() {
        let call = Call::of(&[90, 10, 30], 10).unwrap();
        assert_eq!(
            (call.first_ns, call.median_ns, call.p95_ns, call.total_ns),
            (90, 30, 90, 130)
        );
        assert_eq!(call.median_ns_per_page, 3.0);
        assert_eq!(Call::of(&[], 10), None);
    }

    #[test]
    fn one_failed_check_fails_all() {
        let good = Check::at_most("pages", 4, 5);
        assert!(Expected::of(vec![good.clone()]).pass);
        assert!(!Expected::of(vec![good, Check::exactly("copies", 4, 5)]).pass);
    }
}
