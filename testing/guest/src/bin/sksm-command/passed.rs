//! What advice from another process passes over, and that `sksm merge` says so.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::page::PAGE;

use crate::command::{number, set_domain, sksm};
use crate::crew::{Crew, Holding, TABLE, USERS};

/// The row of one process, and the exit status. By itself the command asks for nothing that would be passed over.
fn merge(pid: u32) -> Result<(Value, Option<i32>)> {
    let pid = pid.to_string();
    let output = sksm(&["merge", "--everything", "--json", "--pid", &pid])?;
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((report["processes"][0].clone(), output.status.code()))
}

fn because(row: &Value, reason: &str) -> bool {
    row["passed_over_reasons"].to_string().contains(reason)
}

/// The rest of the process merges.
pub fn left_out_of_dumps() -> Result<()> {
    let crew = Crew::start([(Holding::Undumped, 0)])?;
    let (row, status) = merge(crew.pids()[0])?;
    let half = (TABLE / 2) as f64;
    ensure!(status == Some(0), "{row}");
    ensure!(number(&row["passed_over_pages"])? == half, "{row}");
    ensure!(because(&row, "left out of dumps"), "{row}");
    ensure!(number(&row["merged_bytes"])? >= half * PAGE as f64, "{row}");
    Ok(())
}

/// Unless its control group has a mark.
pub fn not_dumpable() -> Result<()> {
    let group = Cgroup::new("hidden")?;
    let crew = Crew::start([(Holding::Hidden, USERS[0])])?;
    let pid = crew.pids()[0];
    let (row, status) = merge(pid)?;
    ensure!(status == Some(1) && because(&row, "not dumpable"), "{row}");
    ensure!(row["merged_bytes"] == 0, "{row}");
    ensure!(number(&row["passed_over_pages"])? >= TABLE as f64, "{row}");
    group.write("cgroup.procs", &pid.to_string())?;
    group.write("memory.merge_domain", "user")?;
    let (row, status) = merge(pid)?;
    ensure!(status == Some(0) && row["passed_over_pages"] == 0, "{row}");
    ensure!(
        number(&row["merged_bytes"])? >= (TABLE * PAGE) as f64,
        "{row}"
    );
    Ok(())
}

pub fn no_domain() -> Result<()> {
    set_domain("none")?;
    let crew = Crew::start([(Holding::Table, 0)])?;
    let (row, status) = merge(crew.pids()[0])?;
    ensure!(status == Some(1), "{row}");
    ensure!(because(&row, "merge domain is none"), "{row}");
    ensure!(number(&row["passed_over_pages"])? >= TABLE as f64, "{row}");
    ensure!(row["merged_bytes"] == 0, "{row}");
    // And it is said what to do.
    ensure!(because(&row, "echo user > "), "{row}");
    Ok(())
}
