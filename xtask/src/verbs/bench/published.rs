//! The measurements as they are published.

use serde::{Deserialize, Serialize};
use sksm_records::bench::Report;

use super::unused::Unused;
use crate::terminal::format::thousands;

/// What goes into bench.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    #[serde(flatten)]
    pub report: Report,
    pub unused: Option<Unused>,
    /// Why it is not there though it was asked for.
    pub unused_left_out: Option<String>,
    /// All of it, but for building.
    pub seconds: f64,
}

/// What the figures are from, in words.
pub fn setting(report: &Report) -> String {
    let machine = if report.processor == "UML" {
        "User-Mode Linux, where faults and page-table changes are the host's work"
    } else if report.processor.contains("TCG") {
        "emulated by QEMU, where instructions do not cost what they cost on hardware"
    } else {
        &report.processor
    };
    format!(
        "Linux {} with {} CPU{} and {} MiB; {machine}",
        report.kernel,
        report.cpus,
        if report.cpus == 1 { "" } else { "s" },
        thousands(report.memory_mib as i64),
    )
}
