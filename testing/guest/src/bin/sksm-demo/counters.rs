//! An engine's numbers in sysfs.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sksm_guest::machine::sysfs::Dir;

pub type Numbers = BTreeMap<String, i64>;

/// What must be as before once every process has gone: SKSM's names, and those of KSM that it knows too.
pub const HELD: [&str; 5] = [
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_zero",
    "bytes_metadata",
];

/// Merged pages are released a little after their last process, by work items.
const RELEASE: Duration = Duration::from_secs(10);

pub fn read(engine: Dir) -> Result<Numbers> {
    let path = engine.path("");
    let mut numbers = Numbers::new();
    for entry in std::fs::read_dir(&path).with_context(|| format!("cannot read {path}"))? {
        let entry = entry?;
        // Whatever it does, it tells nothing.
        if entry.metadata()?.mode() & 0o444 == 0 {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        // The others are choices in words.
        if let Ok(number) = engine.text(&name)?.parse() {
            numbers.insert(name, number);
        }
    }
    Ok(numbers)
}

/// Reads once the engine has released what it held for processes that have gone, or fails to for long.
pub fn read_settled(engine: Dir, before: &Numbers) -> Result<Numbers> {
    let deadline = Instant::now() + RELEASE;
    loop {
        let now = read(engine)?;
        if HELD.iter().all(|name| now.get(*name) == before.get(*name)) || Instant::now() > deadline
        {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
