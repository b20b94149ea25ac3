//! Merge domains as the command tells them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::machine::cgroup::Cgroup;

use crate::command::{check, json, set_domain};
use crate::crew::{Crew, Holding, USERS};

/// `/sys/kernel/mm/sksm/domain` says what processes are put together by.
pub fn in_top() -> Result<()> {
    let crew = Crew::start([(Holding::Table, 0), (Holding::Table, USERS[0])])?;
    let looks = |domain: &str| -> Result<Vec<Value>> {
        set_domain(domain)?;
        let look = json(&["top"])?;
        ensure!(look["domain"] == domain, "{look}");
        Ok(look["domains"].as_array().context("no domains")?.clone())
    };
    let users = looks("user")?;
    let user = USERS[0].to_string();
    ensure!(named(&users, "root") && named(&users, &user), "{users:?}");
    let global = looks("global")?;
    ensure!(
        global.len() == 1 && named(&global, "all processes"),
        "{global:?}"
    );
    let groups = looks("cgroup")?;
    let own = own_group()?;
    for user in ["root", &user] {
        let right = format!("{user} in {own}");
        ensure!(named(&groups, &right), "{right} is not in {groups:?}");
    }
    let none = looks("none")?;
    ensure!(none.is_empty(), "{none:?}");
    let look = json(&["top"])?;
    let rows = look["processes"].as_array().context("no processes")?;
    let told = |row: &Value| {
        row["apart"]
            .as_str()
            .is_some_and(|why| why.contains("none"))
    };
    ensure!(!rows.is_empty() && rows.iter().all(told), "{look}");
    drop(crew);
    Ok(())
}

/// A mark of a control group is nearer than the machine's.
pub fn marks() -> Result<()> {
    let group = Cgroup::new("marked")?;
    let crew = Crew::start([(Holding::Table, USERS[0])])?;
    let pid = crew.pids()[0];
    group.write("cgroup.procs", &pid.to_string())?;
    set_domain("user")?;
    let user = USERS[0];
    for (mark, right) in [
        ("inherit", format!("{user}")),
        ("user", format!("{user} in /sksm-")),
        ("all", "all of /sksm-".into()),
    ] {
        group.write("memory.merge_domain", mark)?;
        let look = json(&["top"])?;
        let rows = look["processes"].as_array().context("no processes")?;
        let row = rows.iter().find(|row| row["pid"] == pid);
        let name = row.and_then(|row| row["domain"].as_str()).unwrap_or("?");
        ensure!(name.starts_with(&right), "{mark}: {name}");
    }
    Ok(())
}

/// What `sksm doctor` says of the domain that it is in itself.
pub fn in_doctor() -> Result<()> {
    for (domain, state, words) in [
        ("cgroup", "yes", "root in "),
        ("user", "yes", "shares with: root ("),
        ("global", "yes", "all processes"),
        ("none", "no", "merge domain is none"),
    ] {
        set_domain(domain)?;
        let report = json(&["doctor"])?;
        let found = check(&report, "merge domain")?;
        let told = found["detail"].as_str().unwrap_or_default();
        ensure!(found["state"] == state && told.contains(words), "{report}");
        let next = report["next"].to_string();
        let advised = next.contains("echo user > /sys/kernel/mm/sksm/domain");
        ensure!(advised == matches!(domain, "cgroup" | "none"), "{report}");
    }
    Ok(())
}

fn named(domains: &[Value], name: &str) -> bool {
    domains.iter().any(|one| one["name"] == name)
}

/// The memory control group of this process: nearer ones may be without the controller.
fn own_group() -> Result<String> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    let path = Path::new(path.unwrap_or("/"));
    let has_memory = |group: &&Path| {
        let below = group.strip_prefix("/").unwrap_or(group);
        let file = Path::new("/sys/fs/cgroup")
            .join(below)
            .join("memory.current");
        file.exists()
    };
    let found = path.ancestors().find(has_memory);
    Ok(found.unwrap_or(Path::new("/")).display().to_string())
}
