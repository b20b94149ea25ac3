//! What `sksm estimate` foretells is what merging saves.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::numa;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::skip::skip;

use crate::command::{number, run, set_domain, sysfs};
use crate::crew::{Crew, Holding, Installed, USERS};

/// An ordinary user sees no page frames, and what processes share since a fork by addresses only.
pub fn own_processes() -> Result<()> {
    let program = Installed::new("sksm")?;
    let crew = Crew::start([(Holding::Fork, USERS[0])])?;
    let right = crew.sksm(&["estimate"])?;
    let pids: Vec<String> = crew.pids().iter().map(u32::to_string).collect();
    let mut command = program.by(USERS[0]);
    let output = run(command.args(["estimate", "--json", "--pid"]).args(&pids))?;
    ensure!(output.status.success(), "{output:?}");
    let seen: Value = serde_json::from_slice(&output.stdout)?;
    for figure in ["pages", "saved_pages"] {
        let value = |report: &Value| number(&report["within_domains"][figure]);
        let (right, seen) = (value(&right)?, value(&seen)?);
        ensure!(
            (seen - right).abs() < 0.02 * right,
            "{figure}: {seen}, root sees {right}"
        );
    }
    ensure!(number(&seen["maybe_shared_pages"])? > 0.0, "{seen}");
    ensure!(number(&right["maybe_shared_pages"])? == 0.0, "{right}");
    Ok(())
}

pub fn forked() -> Result<()> {
    let crew = Crew::start([(Holding::Fork, 0), (Holding::Fork, 0)])?;
    crew.agrees(&crew.pids(), "within_domains")
}

/// The parent has what its children have in common, and keeps it.
pub fn children_only() -> Result<()> {
    let crew = Crew::start([(Holding::Fork, 0)])?;
    crew.agrees(&crew.pids()[1..], "within_domains")
}

pub fn huge_pages() -> Result<()> {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return skip("this kernel has no huge pages");
    }
    let crew = Crew::start([(Holding::Huge, 0), (Holding::Huge, 0)])?;
    crew.agrees(&crew.pids(), "within_domains")
}

/// More than one page takes, as it is set, and with a limit that makes a difference of more than 2%.
pub fn many_sharers() -> Result<()> {
    for limit in [None, Some("10")] {
        if let Some(limit) = limit {
            fs::write("/sys/kernel/mm/sksm/max_page_sharing", limit)?;
        }
        let crew = Crew::start([(Holding::Often, 0), (Holding::Often, 0)])?;
        let limit = sysfs("max_page_sharing")?;
        ensure!(limit < 600, "one page takes {limit}");
        crew.agrees(&crew.pids(), "within_domains")
            .with_context(|| format!("{limit} mappings a page"))?;
    }
    Ok(())
}

pub fn several_users() -> Result<()> {
    let table = |user| (Holding::Table, user);
    let users = [USERS[0], USERS[0], USERS[1], USERS[1]];
    for (domain, figure) in [
        ("cgroup", "within_domains"),
        ("user", "within_domains"),
        ("user", "within_users"),
        ("global", "within_domains"),
        ("global", "across_users"),
    ] {
        set_domain(domain)?;
        let crew = Crew::start(users.map(table))?;
        crew.agrees(&crew.pids(), figure)
            .with_context(|| format!("{domain}, {figure}"))?;
    }
    Ok(())
}

/// Control groups are apart unless the machine or a mark says otherwise.
pub fn control_groups() -> Result<()> {
    let groups = [Cgroup::new("estimate-a")?, Cgroup::new("estimate-b")?];
    let start = || -> Result<Crew> {
        let member = |user| (Holding::Table, user);
        let crew = Crew::start([USERS[0], USERS[0], USERS[1], USERS[0]].map(member))?;
        for (pid, group) in crew.pids().iter().zip([0, 0, 0, 1]) {
            groups[group].write("cgroup.procs", &pid.to_string())?;
        }
        Ok(crew)
    };
    for (domain, marks) in [
        // Two of one user in one group.
        ("cgroup", ["inherit", "inherit"]),
        // Three of one user.
        ("user", ["inherit", "inherit"]),
        // Three in one group.
        ("cgroup", ["all", "inherit"]),
        ("none", ["all", "user"]),
        // All.
        ("global", ["inherit", "inherit"]),
    ] {
        set_domain(domain)?;
        for (group, mark) in groups.iter().zip(marks) {
            group.write("memory.merge_domain", mark)?;
        }
        let crew = start()?;
        crew.agrees(&crew.pids(), "within_domains")
            .with_context(|| format!("{domain}, {marks:?}"))?;
    }
    groups[0].write("memory.merge_domain", "none")?;
    let crew = start()?;
    let report = crew.sksm(&["estimate"])?;
    for row in report["processes"].as_array().context("no processes")? {
        let (apart, saved) = (row["apart"].is_string(), number(&row["saved_pages"])?);
        let inside = crew.pids()[..3].iter().any(|pid| row["pid"] == *pid);
        ensure!(apart == inside && (saved == 0.0 || !inside), "{report}");
    }
    Ok(())
}

/// Where only pages of one node merge, those of two are no twins.
pub fn nodes() -> Result<()> {
    numa::needed()?;
    let crew = Crew::start([(Holding::Table, 0); 4])?;
    for (pid, node) in crew.pids().into_iter().zip([0, 1, 0, 1]) {
        numa::migrate(pid as i32, 1 - node, node)?;
    }
    let foretold = |across: bool| {
        SKSM.write("merge_across_nodes", u8::from(across))?;
        let report = crew.sksm(&["estimate"])?;
        ensure!(report["within_nodes"] == !across, "{report}");
        number(&report["within_domains"]["saved_pages"])
    };
    let (across, within) = (foretold(true)?, foretold(false)?);
    ensure!(across - within > 1000.0, "{across} across nodes, {within}");
    crew.agrees(&crew.pids(), "within_domains")
}

pub fn takes_nothing_apart() -> Result<()> {
    let crew = Crew::start([(Holding::Fork, 0), (Holding::Table, 0)])?;
    crew.sksm(&["merge"])?;
    let merged = crew.frames()?;
    let estimate = crew.sksm(&["estimate"])?;
    let looked = crew.frames()?;
    ensure!(looked <= merged, "{merged} pages became {looked}");
    let left = number(&estimate["within_domains"]["saved_pages"])?;
    ensure!(
        left < 0.02 * merged as f64,
        "{left} of {merged} could be saved still"
    );
    Ok(())
}
