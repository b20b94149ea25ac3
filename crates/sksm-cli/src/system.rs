//! What the kernel counts for the whole system.

use std::collections::BTreeMap;

use serde::Serialize;
use sksm::SystemStatistics;

pub type Counters = BTreeMap<&'static str, i64>;

/// Counters by their names in sysfs.
#[derive(Serialize, Clone)]
pub struct System {
    pub sksm: Option<Counters>,
    pub ksm: Option<Counters>,
}

impl System {
    pub fn read() -> Self {
        let counters = |statistics: SystemStatistics| statistics.iter().collect();
        System {
            sksm: SystemStatistics::sksm().map(counters),
            ksm: SystemStatistics::ksm().map(counters),
        }
    }
}
