//! Metrics of the scanner. Processes have none of their own: each of them would be a series for ever.

use super::{Bytes, Counter, CounterOfSeconds, Family, Gauge, Ratio, Seconds};
use crate::scan::state::State;

/// What was counted stays true after its end; what is so just now is told only while it runs.
pub fn families(state: &State) -> Vec<Family> {
    let total = &state.total;
    let mut families = vec![
        Family::one(
            "sksm_scan_running",
            Gauge,
            "1: a scanner runs, 0: one did",
            u8::from(state.running),
        ),
        Family::one(
            "sksm_scan_start_timestamp",
            Seconds,
            "When it was started, since 1970",
            state.started,
        ),
        Family::one(
            "sksm_scan_update_timestamp",
            Seconds,
            "When it told all this, since 1970",
            state.updated,
        ),
        Family::one(
            "sksm_scan_pages_sampled",
            Counter,
            "Pages of which a sample was read",
            total.sampled_pages,
        ),
        Family::one(
            "sksm_scan_pages_read",
            Counter,
            "Pages that were read in full",
            total.read_pages,
        ),
        Family::one(
            "sksm_scan_pages_merged",
            Counter,
            "Pages that were merged",
            total.merged_pages,
        ),
        Family::one(
            "sksm_scan_pages_came_apart",
            Counter,
            "Merged pages that were written within a minute",
            total.came_apart_pages,
        ),
        Family::one(
            "sksm_scan_huge_pages_split",
            Counter,
            "Huge pages that were split",
            total.split_huge_pages,
        ),
        Family::one(
            "sksm_scan_cpu",
            CounterOfSeconds,
            "CPU time that it took",
            total.cpu_seconds,
        ),
    ];
    if state.running {
        families.extend(present(state));
    }
    families
}

fn present(state: &State) -> [Family; 12] {
    let (total, settings) = (&state.total, &state.settings);
    [
        Family::one(
            "sksm_scan_waiting",
            Gauge,
            "1: it does nothing until memory is short, as --when says",
            u8::from(state.waiting.is_some()),
        ),
        Family::one(
            "sksm_scan_stable",
            Seconds,
            "So long a page must have stayed the same, as --stable says",
            settings.stable_seconds,
        ),
        Family::one(
            "sksm_scan_cpu_limit",
            Ratio,
            "How much of one CPU it may take, as --cpu says; 1 is no limit",
            // Without what a binary fraction adds to it.
            (settings.cpu_percent * 1000.0).round() / 100_000.0,
        ),
        Family::one(
            "sksm_scan_processes",
            Gauge,
            "Processes that are looked at",
            state.processes_count,
        ),
        Family::one(
            "sksm_scan_processes_left_out",
            Gauge,
            "Processes that cannot be looked at, or never merge",
            state.left_out_count,
        ),
        Family::one(
            "sksm_scan_looked_at",
            Bytes,
            "Private memory that is looked at",
            total.bytes,
        ),
        Family::one(
            "sksm_scan_merged",
            Bytes,
            "Of it, what the scanner has merged and is so still",
            total.merged_bytes,
        ),
        Family::one(
            "sksm_scan_saved",
            Bytes,
            "What merging saves in these processes, less metadata",
            total.saved_bytes,
        ),
        Family::one(
            "sksm_scan_huge",
            Bytes,
            "Of what is looked at, memory in huge pages",
            total.huge_bytes,
        ),
        Family::one(
            "sksm_scan_own_peak",
            Bytes,
            "The most memory that the scanner itself has taken",
            state.own_peak_bytes,
        ),
        Family::one(
            "sksm_scan_table",
            Bytes,
            "Memory for what it knows of pages",
            state.table_bytes,
        ),
        Family::one(
            "sksm_scan_reserve",
            Bytes,
            "Memory and swap left if all that is merged were written at once",
            state.reserve_bytes,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, text};
    use crate::scan::state::tests::example;
    use crate::system::System;

    fn told(state: &State, format: Format) -> String {
        let system = System {
            sksm: None,
            ksm: None,
        };
        text(&system, Some(state), None, &[], format)
    }

    #[test]
    fn each_value_has_its_unit() {
        let text = told(&example(), Format::OpenMetrics);
        for part in [
            "# TYPE sksm_scan_running gauge\nsksm_scan_running 1\n",
            "# UNIT sksm_scan_start_timestamp_seconds seconds\nsksm_scan_start_timestamp_seconds 1700000000\n",
            "# TYPE sksm_scan_cpu_seconds counter\n# UNIT sksm_scan_cpu_seconds seconds\nsksm_scan_cpu_seconds_total 78.25\n",
            "# UNIT sksm_scan_cpu_limit_ratio ratio\nsksm_scan_cpu_limit_ratio 0.05\n",
            "sksm_scan_stable_seconds 60\n",
            "sksm_scan_pages_came_apart_total 1234\n",
            "sksm_scan_reserve_bytes -1073741824\n",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        let older = told(&example(), Format::Prometheus);
        let part =
            "# TYPE sksm_scan_cpu_seconds_total counter\nsksm_scan_cpu_seconds_total 78.25\n";
        assert!(older.contains(part) && !older.contains("# UNIT"), "{older}");
    }

    /// A process is no label, and what no scanner does is no value.
    #[test]
    fn what_has_ended_leaves_its_counters() {
        let mut state = example();
        assert!(!told(&state, Format::Prometheus).contains("qemu"));
        state.running = false;
        let text = told(&state, Format::Prometheus);
        assert!(text.contains("\nsksm_scan_running 0\n"), "{text}");
        assert!(
            text.contains("\nsksm_scan_pages_merged_total 800000\n"),
            "{text}"
        );
        assert!(!text.contains("sksm_scan_saved_bytes"), "{text}");
    }
}
