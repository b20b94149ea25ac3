//! Trace events, through an instance of tracefs of one's own.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::skip::skip;
use crate::syscall::check;

const ROOT: &str = "/sys/kernel/tracing";
const ROOT_C: &CStr = c"/sys/kernel/tracing";

/// A buffer for events that no other instance sees; removed when dropped.
pub struct Trace(PathBuf);

/// One event that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The thread that it happened in.
    pub pid: i32,
    pub name: String,
    /// The rest of its line, as `name value name value ...`.
    pub text: String,
}

impl Trace {
    /// Skips the test where the kernel has no trace events.
    pub fn new() -> Result<Self> {
        if !Path::new(ROOT).is_dir() {
            return skip("no trace events in this kernel (CONFIG_TRACING)");
        }
        if !Path::new(ROOT).join("instances").is_dir() {
            mount().context("cannot mount tracefs")?;
        }
        let path = PathBuf::from(format!("{ROOT}/instances/sksm-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let trace = Self(path);
        // Pointers as they are, so that equal ones look equal and others do not.
        trace.write("options/hash-ptr", "0")?;
        Ok(trace)
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value).with_context(|| format!("cannot write to {}", path.display()))
    }

    /// Whether the kernel knows this event.
    pub fn has(&self, event: &str) -> bool {
        self.0.join("events").join(event).is_dir()
    }

    /// Turns an event, given as `SYSTEM/EVENT`, or all of a system, on or off.
    pub fn set(&self, events: &str, on: bool) -> Result<()> {
        self.write(
            &format!("events/{events}/enable"),
            if on { "1" } else { "0" },
        )
    }

    /// What has happened since this was asked last.
    pub fn take(&self) -> Result<Vec<Event>> {
        let path = self.0.join("trace");
        let text = fs::read_to_string(&path).context("cannot read the trace")?;
        // Opened for writing it is emptied.
        self.write("trace", "")?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| parse(line).with_context(|| format!("a line of the trace: {line}")))
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

impl Event {
    /// The value behind this name.
    pub fn field(&self, name: &str) -> Result<&str> {
        let words = self.text.split_whitespace();
        words
            .skip_while(|word| *word != name)
            .nth(1)
            .with_context(|| format!("no field {name} in {self:?}"))
    }

    pub fn decimal(&self, name: &str) -> Result<u64> {
        Ok(self.field(name)?.parse()?)
    }

    pub fn hex(&self, name: &str) -> Result<u64> {
        Ok(u64::from_str_radix(self.field(name)?, 16)?)
    }
}

/// `COMMAND-PID [CPU] FLAGS TIME: NAME: TEXT`
fn parse(line: &str) -> Option<Event> {
    let (head, rest) = line.split_once(": ")?;
    let (name, text) = rest.split_once(':')?;
    let (_, pid) = head.split_once('[')?.0.trim_end().rsplit_once('-')?;
    Some(Event {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        text: text.trim().to_owned(),
    })
}

/// An event where programs execute this byte of a file, as long as this is not dropped.
pub struct Uprobe<'a> {
    trace: &'a Trace,
    name: String,
}

impl<'a> Uprobe<'a> {
    const GROUP: &'static str = "sksm_test";

    /// Skips the test where the kernel has no such events.
    pub fn new(trace: &'a Trace, file: &Path, offset: usize) -> Result<Self> {
        if !Path::new(ROOT).join("uprobe_events").exists() {
            return skip("no uprobes in this kernel (CONFIG_UPROBE_EVENTS)");
        }
        let name = format!("at_{}", std::process::id());
        let group = Self::GROUP;
        define(&format!("p:{group}/{name} {}:{offset:#x}", file.display()))
            .context("cannot define a uprobe")?;
        let probe = Self { trace, name };
        trace.set(&format!("{group}/{}", probe.name), true)?;
        Ok(probe)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Uprobe<'_> {
    fn drop(&mut self) {
        let name = format!("{}/{}", Self::GROUP, self.name);
        let removed = (self.trace.set(&name, false))
            .and_then(|()| define(&format!("-:{name}")).context("uprobe_events"));
        if let Err(error) = removed {
            eprintln!("cannot remove a uprobe: {error:#}");
        }
    }
}

/// Adds a line to the list of uprobe events, or takes one away.
fn define(line: &str) -> io::Result<()> {
    let list = Path::new(ROOT).join("uprobe_events");
    OpenOptions::new()
        .append(true)
        .open(list)?
        .write_all(line.as_bytes())
}

fn mount() -> io::Result<()> {
    let name = c"tracefs".as_ptr();
    // SAFETY: valid strings; this file system takes no data.
    check(unsafe { libc::mount(name, ROOT_C.as_ptr(), name, 0, std::ptr::null()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_trace() {
        let event = parse(
            "        sksm-abi-140     [001] ...1.  1234.567890: sksm_merge: mm 00000000aa addr 7f10 pfn 2b",
        )
        .unwrap();
        assert_eq!((event.pid, event.name.as_str()), (140, "sksm_merge"));
        assert_eq!(event.hex("addr").unwrap(), 0x7f10);
        assert_eq!(event.field("pfn").unwrap(), "2b");
        assert!(event.decimal("busy").is_err());
        assert_eq!(parse("CPU:0 [LOST 3 EVENTS]"), None);
        let probe = parse("a-b: c-9 [000] ..... 1.2: at_7: (0x1000)");
        assert_eq!(probe, None, "a command with a colon is not understood");
    }
}
