//! Allocations that fail at random, in the thread that asks for it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// Of a hundred allocations.
const FAIL: u32 = 20;
const SWITCH: &str = "/proc/thread-self/make-it-fail";
const SETTINGS: &str = "/sys/kernel/debug";

/// Whether the kernel can do it.
pub fn available() -> bool {
    ["failslab", "fail_page_alloc"]
        .map(|kind| format!("{SETTINGS}/{kind}"))
        .iter()
        .map(String::as_str)
        .chain([SWITCH])
        .all(|path| fs::exists(path).unwrap_or(false))
}

/// Sets faults up for threads that will ask.
pub fn set_up() -> Result<()> {
    for kind in ["failslab", "fail_page_alloc"] {
        let settings = [
            ("task-filter", "Y".to_owned()),
            ("probability", FAIL.to_string()),
            ("times", "-1".into()),
            ("verbose", "0".into()),
            ("ignore-gfp-wait", "N".into()),
        ];
        for (name, value) in settings {
            let path = format!("{SETTINGS}/{kind}/{name}");
            fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
        }
    }
    fs::write(format!("{SETTINGS}/fail_page_alloc/min-order"), "0").context("min-order")
}

/// Calls `body`, of whose allocations one fails: the first, the second, and so on, if there are so many. Tells whether it did.
pub fn nth<T>(number: usize, body: impl FnOnce() -> T) -> Result<(T, bool)> {
    const PATH: &str = "/proc/thread-self/fail-nth";
    let file = OpenOptions::new().read(true).write(true).open(PATH);
    let file = file.context(PATH)?;
    let mut left = [0; 16];
    file.write_all_at(number.to_string().as_bytes(), 0)?;
    let result = body();
    let count = file.read_at(&mut left, 0)?;
    file.write_all_at(b"0", 0)?;
    Ok((result, left[..count].starts_with(b"0")))
}

/// The switch of the thread that opened it.
pub struct Faults(File);

impl Faults {
    pub fn of_this_thread() -> Result<Self> {
        let file = OpenOptions::new().write(true).open(SWITCH);
        Ok(Self(file.context(SWITCH)?))
    }

    /// Calls `body` with failing allocations. It must do nothing that needs more than a system call.
    pub fn during<T>(&self, body: impl FnOnce() -> T) -> Result<T> {
        self.0.write_all_at(b"1", 0)?;
        let result = body();
        self.0.write_all_at(b"0", 0)?;
        Ok(result)
    }
}
