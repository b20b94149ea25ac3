//! What the scanner did, in words.

use anyhow::Result;

use super::state::{State, Totals};
use crate::output;
use crate::reason::Crowd;
use crate::target::name_of;

/// So many processes are shown.
const SHOWN: usize = 20;

/// In one line.
pub fn line(state: &State) -> String {
    let total = &state.total;
    let mut line = format!(
        "{} merged of {} in {} processes; saved {}; {:.1} s of CPU time",
        output::bytes(total.merged_bytes as i64),
        output::bytes(total.bytes as i64),
        state.processes_count,
        output::bytes(total.saved_bytes),
        total.cpu_seconds
    );
    if let Some(why) = &state.waiting {
        line += &format!("; waits, as {why}");
    }
    line
}

pub fn show(state: &State, verbose: bool) -> Result<()> {
    let cells = |name: String, one: &Totals| {
        vec![
            name,
            output::bytes(one.bytes as i64),
            output::bytes(one.merged_bytes as i64),
            output::bytes(one.saved_bytes),
            one.came_apart_pages.to_string(),
            format!("{:.2} s", one.cpu_seconds),
        ]
    };
    let shown = state.processes.iter().take(SHOWN);
    let mut rows: Vec<_> = shown
        .map(|row| cells(format!("{} {}", row.pid, row.name), &row.totals))
        .collect();
    let name = match state.processes_count {
        ..=SHOWN => "all".into(),
        count => format!("all {count}, see --json"),
    };
    rows.push(cells(name, &state.total));
    let head = [
        "process",
        "looked at",
        "merged",
        "saved",
        "came apart",
        "CPU time",
    ];
    output::table(&head, &rows)?;
    let mut crowd = Crowd::default();
    for one in &state.left_out {
        crowd.add(one.pid, &name_of(one.pid), &one.reason);
    }
    crowd.tell("left out");
    if state.processes_count == 0 {
        output::note(match state.settings.opted_in {
            true => {
                "no memory is open to KSM here, so none was looked at; choose processes, as in --name, or see \
                 `sksm scan --help` about --opted-in"
            }
            false => "none of these processes has private memory to look at",
        });
    }
    if state.reserve_bytes < 0 {
        output::note(&format!(
            "if all that is merged were written at once, {} would be missing",
            output::bytes(-state.reserve_bytes)
        ));
    }
    if verbose {
        let total = &state.total;
        let gib = (total.bytes as f64 / f64::from(1 << 30)).max(f64::MIN_POSITIVE);
        output::line(&format!(
            "{} pages sampled, {} read in full, {} merged; {} huge pages split",
            total.sampled_pages, total.read_pages, total.merged_pages, total.split_huge_pages
        ))?;
        output::line(&format!(
            "kept about pages: {}, {} for each GiB looked at; own memory: {} at most",
            output::bytes(state.table_bytes as i64),
            output::bytes((state.table_bytes as f64 / gib) as i64),
            output::bytes(state.own_peak_bytes as i64)
        ))?;
    }
    Ok(())
}
