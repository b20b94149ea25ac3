//! What ksmd took: the part of both reports that is about KSM, and the lines by which a host watches it.

use serde::{Deserialize, Serialize};

/// The ends of progress lines on stderr from which a host takes ksmd's CPU time: the kernel is at rest and ksmd stopped; ksmd
/// starts to merge; it has merged.
pub const KSMD_WAITS: &str = "ksmd waits";
pub const KSMD_STARTS: &str = "ksmd starts";
pub const KSMD_STOPS: &str = "ksmd has done its work";

/// How ksmd fared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ksm {
    pub sleep_millisecs: i64,
    pub pages_to_scan: i64,
    /// The saved pages that it had to reach: as many as MADV_MERGE saved.
    pub target: i64,
    pub end: KsmEnd,
    /// Until then, by the clock and on the CPU. What the kernel cannot account precisely itself, the host fills in.
    pub seconds: f64,
    pub cpu_seconds: Option<f64>,
    pub pages_scanned: i64,
    pub full_scans: i64,
}

/// Why the wait for ksmd ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KsmEnd {
    /// It saved as much.
    Reached,
    /// It scanned everything several times and found nothing more.
    Stalled,
    /// The time was up.
    TimedOut,
}
