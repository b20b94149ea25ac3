//! What the benchmark measures: the JSON that `sksm-bench` prints and `cargo xtask bench` reads.

pub mod names;

use serde::{Deserialize, Serialize};

use crate::ksmd::Ksm;
use crate::statistics::Summary;

/// All of it, from one boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub kernel: String,
    /// As it calls itself in `/proc/cpuinfo`.
    pub processor: String,
    pub cpus: usize,
    pub memory_mib: u64,
    /// Fewer repeats and smaller sizes.
    pub quick: bool,
    /// What the figures call nanoseconds are instructions: the clock of this machine counted them.
    #[serde(default)]
    pub instructions: bool,
    pub families: Vec<Family>,
    /// Families that did not come to their end; their rows are those from before.
    #[serde(default)]
    pub failed: Vec<Failure>,
    /// None if the family that compares with KSM was left out.
    pub beside_ksm: Option<BesideKsm>,
}

/// Why a family did not come to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub family: String,
    pub error: String,
}

/// Measurements that belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Family {
    pub name: String,
    pub title: String,
    /// How long all of it took.
    pub seconds: f64,
    pub rows: Vec<Row>,
    /// What could not be measured here, and what to know about the figures.
    pub notes: Vec<String>,
}

/// One measurement, repeated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub what: String,
    /// Tells rows of the same name apart; may be empty.
    pub variant: String,
    /// The place on the axis, of rows that make up a curve.
    pub at: Option<u64>,
    pub unit: Unit,
    pub value: Summary,
    /// Taken just after.
    pub yardstick: Option<Yardstick>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    NsPerPage,
    /// Of something that is not done by the page: a fork.
    Ns,
    PagesPerSecond,
    Bytes,
    Count,
}

/// What user space needs for one pair of equal pages, here and then, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Yardstick {
    pub memcmp: f64,
    pub memcpy: f64,
    /// The checksum of one of them, which the kernel takes by the same algorithm; the kernel's own is out of reach from here.
    pub xxh64: f64,
}

/// The same pages, merged by either engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BesideKsm {
    pub pages: usize,
    /// Pages that merging all of them saves.
    pub saved: usize,
    /// Seconds of MADV_MERGE over all pages.
    pub sksm_seconds: Summary,
    pub sksm_scanned: i64,
    /// Runs of ksmd; those with the same tuning follow each other.
    pub ksm: Vec<Ksm>,
}

/// What the runs of ksmd with one tuning took.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    pub sleep_millisecs: i64,
    pub seconds: Summary,
    /// None if nobody knows.
    pub cpu_seconds: Option<Summary>,
    pub pages_scanned: Summary,
}

impl BesideKsm {
    pub fn by_tuning(&self) -> Vec<Tuned> {
        let same = |one: &Ksm, other: &Ksm| one.sleep_millisecs == other.sleep_millisecs;
        let summary = |runs: &[Ksm], of: fn(&Ksm) -> Option<f64>| {
            Summary::of(runs.iter().filter_map(of).collect())
        };
        let tuned = |runs: &[Ksm]| {
            Some(Tuned {
                sleep_millisecs: runs.first()?.sleep_millisecs,
                seconds: summary(runs, |run| Some(run.seconds))?,
                cpu_seconds: summary(runs, |run| run.cpu_seconds),
                pages_scanned: summary(runs, |run| Some(run.pages_scanned as f64))?,
            })
        };
        self.ksm.chunk_by(same).filter_map(tuned).collect()
    }
}

impl Family {
    /// The rows of a curve, or of one variant.
    pub fn rows<'a>(&'a self, what: &'a str, variant: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows
            .iter()
            .filter(move |row| row.what == what && row.variant == variant)
    }
}

impl Report {
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.iter().find(|family| family.name == name)
    }
}

impl Row {
    /// How often a memcmp of two pages would fit in, for times of a page.
    pub fn in_memcmps(&self) -> Option<f64> {
        let yardstick = self.yardstick.filter(|_| self.unit == Unit::NsPerPage)?;
        Some(self.value.median / yardstick.memcmp)
    }
}
