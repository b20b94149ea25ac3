//! What the scanners saved, of virtual machines or of memory in huge pages, over time: a line for each look.

use serde::{Deserialize, Serialize};

/// Who scans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scanner {
    /// Nobody: what is measured of it shows how far the other figures can be trusted.
    Nobody,
    /// ksmd as the kernel starts with: 100 pages every 20 ms.
    KsmdDefault,
    /// With its advisor, which aims at one scan of everything in 200 s.
    KsmdAdvisor,
    /// 4,000 pages every 20 ms.
    KsmdFast,
    /// No sleep between batches.
    KsmdUnthrottled,
    /// `sksm scan` as it comes.
    Sksm,
    /// With a stable time of ten seconds.
    SksmSoon,
}

impl Scanner {
    pub const ALL: [Self; 7] = [
        Self::Nobody,
        Self::KsmdDefault,
        Self::KsmdAdvisor,
        Self::KsmdFast,
        Self::KsmdUnthrottled,
        Self::Sksm,
        Self::SksmSoon,
    ];

    /// As in a table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::KsmdDefault => "ksmd as it comes",
            Self::KsmdAdvisor => "ksmd, advisor",
            Self::KsmdFast => "ksmd, 4,000 pages every 20 ms",
            Self::KsmdUnthrottled => "ksmd, unthrottled",
            Self::Sksm => "sksm scan",
            Self::SksmSoon => "sksm scan --stable 10s",
        }
    }

    /// As on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::KsmdDefault => "ksmd-default",
            Self::KsmdAdvisor => "ksmd-advisor",
            Self::KsmdFast => "ksmd-fast",
            Self::KsmdUnthrottled => "ksmd-unthrottled",
            Self::Sksm => "sksm",
            Self::SksmSoon => "sksm-soon",
        }
    }
}

/// What is watched, in this order. The host alone knows what CPU time a User-Mode Linux takes, and only of all of it; so the
/// machines are stopped where the scanner's is to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The machines are stopped, and nobody scans: what the kernel takes by itself.
    Baseline,
    /// They are stopped, and the scanner has just been started: all beyond the baseline is the scanner's.
    Stopped,
    /// They run, nothing is merged any more, and the scanner has just been started again.
    Live,
    /// It goes on while they are stopped and run in turn, and this is the beginning of a stop.
    StopBegins,
    /// The end of a stop, or somewhat before.
    StopEnds,
}

/// One look. The host adds the CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    pub part: Part,
    /// Since the part began; all turns are one.
    pub seconds: f64,
    /// Since the program began: a host that reads this late can tell.
    pub clock: f64,
    /// Pages that share another's memory, or became the zero page, in bytes.
    pub saved_bytes: i64,
    /// Merged pages of the whole kernel that were copied, as somebody wrote to them (`cow_ksm`).
    pub copied_pages: u64,
    /// Anonymous huge pages of the whole kernel that are mapped as such.
    pub huge_pages: u64,
    /// CPU time of the scanner since it was started, by the kernel that it runs in; none where that counts whole ticks.
    pub cpu_seconds: Option<f64>,
}

/// What is printed just before a stop ends is read before that, or not counted.
pub const STOP_GOES_ON_SECONDS: f64 = 0.4;
