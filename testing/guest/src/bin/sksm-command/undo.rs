//! `sksm unmerge`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::memory::map::Map;
use sksm_guest::page::PAGE;

use crate::command::{json, number, run, said, sksm, sysfs, text};
use crate::crew::{Crew, Holding, Installed, TABLE, USERS};

fn merged_bytes(pid: u32) -> Result<f64> {
    let stat = json(&["stat", "--pid", &pid.to_string()])?;
    number(&stat[0]["merged_bytes"])
}

/// Every page of the processes that were asked for has its own frame again, zeros too, and others stay as they are.
pub fn of_processes() -> Result<()> {
    let crew = Crew::start([(Holding::Table, 0), (Holding::Fork, 0), (Holding::Table, 0)])?;
    let before = crew.frames()?;
    crew.sksm(&["merge"])?;
    let merged = crew.frames()?;
    ensure!(merged + 1000 < before, "{before} pages became {merged}");
    let pids = crew.pids();
    let (last, others) = pids.split_last().context("nobody")?;
    let words: Vec<String> = others.iter().map(u32::to_string).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let foretold = json(&[&["unmerge", "--dry-run", "--pid"], &words[..]].concat())?;
    ensure!(crew.frames()? == merged, "it was no dry run");
    let report = json(&[&["unmerge", "--pid"], &words[..]].concat())?;
    let rows = |report: &Value| report["processes"].as_array().cloned().unwrap_or_default();
    ensure!(rows(&report).len() == others.len(), "{report}");
    for (row, foretold) in rows(&report).iter().zip(rows(&foretold)) {
        ensure!(row["refused"] == serde_json::json!([]), "{report}");
        let [merged, zero, undone] =
            ["merged_bytes", "zero_bytes", "unmerged_bytes"].map(|name| number(&row[name]));
        let (merged, zero, undone) = (merged?, zero?, undone?);
        ensure!(merged > 0.0 && undone == merged + zero, "{report}");
        ensure!(
            foretold["merged_bytes"] == row["merged_bytes"],
            "{foretold}"
        );
    }
    for pid in others {
        ensure!(merged_bytes(*pid)? == 0.0, "{pid} is merged still");
    }
    ensure!(
        merged_bytes(*last)? > (TABLE / 2 * PAGE) as f64,
        "{last} is not"
    );
    ensure!(number(&report["grown_bytes"])? > 0.0, "{report}");
    // Again, which says that there is nothing to do.
    let again = text(&[&["unmerge", "--pid"], &words[..]].concat())?;
    ensure!(again.contains("nothing to undo"), "{again}");
    let stat = json(&["stat", "--pid", words[0]])?;
    ensure!(
        stat[0]["zero_bytes"] == 0 && stat[0]["sksm_merged_pages"] == 0,
        "{stat}"
    );
    Ok(())
}

/// By one write to the kernel's file.
pub fn of_the_machine() -> Result<()> {
    let crew = Crew::start([(Holding::Table, 0), (Holding::Table, USERS[0])])?;
    let map = Map::filled(&[5, 5, 0, 0])?;
    map.merge()?;
    crew.sksm(&["merge"])?;
    ensure!(sysfs("pages_sharing")? > 0, "nothing is merged");
    let report = json(&["unmerge", "--all"])?;
    ensure!(report["whole_machine"] == true, "{report}");
    ensure!(report["processes"] == serde_json::json!([]), "{report}");
    for counter in [
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "pages_zero",
    ] {
        ensure!(sysfs(counter)? == 0, "{counter} is {}", sysfs(counter)?);
    }
    for pid in crew.pids() {
        ensure!(merged_bytes(pid)? == 0.0, "{pid} is merged still");
    }
    let again = text(&["unmerge", "--all"])?;
    ensure!(again.contains("nothing to undo"), "{again}");
    map.expect_all(|page| if page < 2 { 5 } else { 0 })
}

/// Who may not write that file is told so, and then lacks the right for each process.
pub fn needs_a_right() -> Result<()> {
    let program = Installed::new("sksm")?;
    let crew = Crew::start([(Holding::Table, USERS[0])])?;
    crew.sksm(&["merge"])?;
    let pid = crew.pids()[0];
    let before = merged_bytes(pid)?;
    let output = run(program.by(USERS[0]).args(["unmerge", "--all"]))?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    let told = said(&output.stderr);
    ensure!(told.contains("/sys/kernel/mm/sksm/unmerge"), "{told}");
    let output = run(program
        .by(USERS[0])
        .args(["unmerge", "--pid", &pid.to_string()]))?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    ensure!(said(&output.stderr).contains("CAP_SYS_NICE"), "{output:?}");
    ensure!(merged_bytes(pid)? == before, "it was undone all the same");
    let output = sksm(&["unmerge", "--pid", &pid.to_string(), "2147483647"])?;
    ensure!(output.status.code() == Some(5), "{output:?}");
    Ok(())
}
