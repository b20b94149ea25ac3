//! What the scanner tells others: its ledger, in a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sksm_scan::Ledger;

/// Where it is looked for.
pub const DEFAULT: &str = "/run/sksm-scan/state.json";
/// It is written so often, in seconds, where that costs little.
pub const EVERY: u64 = 10;
/// And so often where it costs much.
pub const AT_LEAST_EVERY: u64 = 300;

/// Of the scanner as a whole.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub struct State {
    pub version: String,
    pub pid: u32,
    /// In seconds since 1970.
    pub started: u64,
    pub updated: u64,
    /// It is written again after so many seconds.
    pub interval_seconds: f64,
    /// False once it has ended.
    pub running: bool,
    /// Why nothing is done just now.
    pub waiting: Option<String>,
    pub settings: Settings,
    /// Of all processes, those that have gone too.
    pub total: Totals,
    /// Memory that the scanner itself has, at most so far, and what it keeps about pages.
    pub own_peak_bytes: u64,
    pub table_bytes: u64,
    /// What the machine could still give if all that was merged came apart at once.
    pub reserve_bytes: i64,
    pub processes_count: usize,
    /// Those with the most memory.
    pub processes: Vec<Row>,
    pub left_out_count: usize,
    pub left_out: Vec<LeftOut>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub struct Settings {
    pub stable_seconds: f64,
    pub cpu_percent: f64,
    pub when: String,
    pub huge_min: u32,
    pub opted_in: bool,
}

/// Sizes in bytes; pages each time that something was done to one.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
#[serde(default)]
pub struct Totals {
    /// Private memory that is looked at.
    pub bytes: u64,
    /// Of it, what was merged by the scanner and is still.
    pub merged_bytes: u64,
    /// What the kernel says is saved, less what it notes down for it.
    pub saved_bytes: i64,
    /// In huge pages.
    pub huge_bytes: u64,
    pub sampled_pages: u64,
    pub read_pages: u64,
    pub merged_pages: u64,
    /// Within a minute of being merged.
    pub came_apart_pages: u64,
    pub split_huge_pages: u64,
    pub cpu_seconds: f64,
}

impl Totals {
    pub fn of(ledger: &Ledger) -> Self {
        let page = sksm::page_size() as u64;
        Totals {
            bytes: ledger.pages * page,
            merged_bytes: ledger.merged * page,
            sampled_pages: ledger.sampled,
            read_pages: ledger.read,
            merged_pages: ledger.merges,
            came_apart_pages: ledger.came_apart,
            split_huge_pages: ledger.split,
            cpu_seconds: ledger.cpu.as_secs_f64(),
            ..Totals::default()
        }
    }
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub struct Row {
    pub pid: u32,
    pub name: String,
    #[serde(flatten)]
    pub totals: Totals,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub struct LeftOut {
    pub pid: u32,
    pub reason: String,
}

pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

impl State {
    /// Of the scanner that runs as a service, if one does, or did; fails where there is one that may not be read.
    pub fn read() -> Result<Option<Self>> {
        Self::read_from(Path::new(DEFAULT), now())
    }

    pub fn read_from(file: &Path, now: u64) -> Result<Option<Self>> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        let mut state: State = serde_json::from_str(&text)
            .with_context(|| format!("{} is no state of `sksm scan`", file.display()))?;
        state.running &= now.saturating_sub(state.updated) < state.old();
        Ok(Some(state))
    }

    /// What is so many seconds old is of a scanner that has gone, or is stopped.
    fn old(&self) -> u64 {
        6 * (self.interval_seconds.ceil() as u64).max(EVERY)
    }

    /// Whether it is of another scanner that is there still.
    pub fn of_another(&self) -> bool {
        let comm = fs::read_to_string(format!("/proc/{}/comm", self.pid));
        self.running && self.pid != std::process::id() && comm.is_ok_and(|name| name == "sksm\n")
    }

    /// Readers see the old one or the new one.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        replace(file, &(serde_json::to_string_pretty(self)? + "\n"))
    }
}

/// Writes a new file in the place of another. It follows no link: the directory may be somebody else's.
pub fn replace(file: &Path, text: &str) -> io::Result<()> {
    let beside = beside(file);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = File::options().write(true).create_new(true).open(&beside)?;
    new.write_all(text.as_bytes())?;
    drop(new);
    fs::rename(&beside, file)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of a scanner at work, as others find it a while later.
    pub fn example() -> State {
        State {
            version: "1.2.3".into(),
            pid: 42,
            started: 1_700_000_000,
            updated: 1_700_007_500,
            interval_seconds: 10.0,
            running: true,
            waiting: None,
            settings: Settings {
                stable_seconds: 60.0,
                cpu_percent: 5.0,
                when: "available-below=20%".into(),
                huge_min: 64,
                opted_in: true,
            },
            total: Totals {
                bytes: 12 << 30,
                merged_bytes: 3 << 30,
                saved_bytes: 2 << 30,
                huge_bytes: 1 << 30,
                sampled_pages: 12_345_678,
                read_pages: 987_654,
                merged_pages: 800_000,
                came_apart_pages: 1234,
                split_huge_pages: 56,
                cpu_seconds: 78.25,
            },
            own_peak_bytes: 62 << 20,
            table_bytes: 48 << 20,
            reserve_bytes: -(1 << 30),
            processes_count: 4,
            processes: vec![Row {
                pid: 7,
                name: "qemu".into(),
                totals: Totals::default(),
            }],
            left_out_count: 1,
            left_out: vec![LeftOut {
                pid: 8,
                reason: "because".into(),
            }],
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.json");
        let read = |now| State::read_from(&file, now);
        assert!(read(0).unwrap().is_none());
        let written = example();
        written.write(&file).unwrap();
        let found = read(written.updated + EVERY).unwrap().unwrap();
        assert!(found.running);
        let same = |of: &State| serde_json::to_value(of).unwrap();
        assert_eq!(same(&found), same(&written));
        // One that was killed tells nobody that it has ended.
        let late = read(written.updated + written.old()).unwrap().unwrap();
        assert!(!late.running);
        // Of an older version, or a newer one.
        fs::write(&file, r#"{"pid": 3, "colour": "red"}"#).unwrap();
        assert_eq!(read(0).unwrap().unwrap().pid, 3);
        fs::write(&file, "{").unwrap();
        let error = format!("{:#}", read(0).unwrap_err());
        assert!(error.contains("state.json is no state of"), "{error}");
    }
    /// The page about JSON has every field, and no other.
    #[test]
    fn it_is_as_documented() {
        fn names(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(fields) => {
                    let dot = if at.is_empty() { "" } else { "." };
                    let named = fields
                        .iter()
                        .map(|(name, of)| (format!("{at}{dot}{name}"), of));
                    named.for_each(|(name, of)| names(of, &name, found));
                }
                serde_json::Value::Array(all) => {
                    all.iter()
                        .for_each(|one| names(one, &format!("{at}[]"), found));
                }
                _ => found.push(at.into()),
            }
        }
        let mut printed = Vec::new();
        names(&serde_json::to_value(example()).unwrap(), "", &mut printed);
        let page = include_str!("../../../../docs/json.md");
        let section = page.split("\n## ").find(|part| part.starts_with("scan\n"));
        let mut documented: Vec<&str> = (section.unwrap().lines())
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
            .collect();
        printed.sort();
        documented.sort();
        assert_eq!(printed, documented);
    }
}
