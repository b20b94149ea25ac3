//! What must hold for the experiment to have succeeded.

use sksm_records::demo::{Check, Expected, Kind, Report};

use crate::counters::HELD;

/// Anonymous pages that come and go by themselves: this program's own heap and the guest's other few processes.
const NOISE: i64 = 64;

/// None if nothing was merged by MADV_MERGE.
pub fn judge(report: &Report) -> Option<Expected> {
    let merged = report.phase(Kind::Merged)?;
    let mut checks = vec![Check::exactly(
        "each different page of libc's text exists once",
        merged.copies as i64,
        report.text_contents as i64,
    )];
    if let Some(idle) = report.phase(Kind::Idle) {
        checks.push(Check::at_most(
            format!("nr_anon_pages: the run with an idle preload object, and the text once (and {NOISE} for noise)"),
            merged.nr_anon_pages as i64,
            idle.nr_anon_pages as i64 + report.text_contents as i64 + NOISE,
        ));
    }
    if let Some(counters) = &merged.counters {
        for name in HELD {
            if let (Some(before), Some(after)) =
                (counters.before.get(name), counters.after.get(name))
            {
                checks.push(Check::exactly(
                    format!("{name} once all processes have gone: as before"),
                    *after,
                    *before,
                ));
            }
        }
    }
    Some(Expected::of(checks))
}
