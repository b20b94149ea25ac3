//! The counters and settings under `/sys/kernel/mm/sksm` and `/sys/kernel/mm/ksm`.

use std::fmt::Display;
use std::fs;
use std::ops::Sub;
use std::path::Path;

use anyhow::{Context, Result};

/// A directory of one-value files.
#[derive(Debug, Clone, Copy)]
pub struct Dir(&'static str);

pub const SKSM: Dir = Dir("/sys/kernel/mm/sksm");
pub const KSM: Dir = Dir("/sys/kernel/mm/ksm");

impl Dir {
    pub fn exists(self) -> bool {
        Path::new(self.0).is_dir()
    }

    pub fn path(self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    pub fn text(self, name: &str) -> Result<String> {
        let path = self.path(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(text.trim().to_owned())
    }

    pub fn number(self, name: &str) -> Result<i64> {
        let text = self.text(name)?;
        // A counter that fell below zero shows as a huge number: a fault of its own, and no reason to understand nothing else.
        (text
            .parse()
            .or_else(|_| text.parse::<u64>().map(|number| number as i64)))
        .with_context(|| format!("{} holds {text:?}, no number", self.path(name)))
    }

    pub fn write(self, name: &str, value: impl Display) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, value.to_string())
            .with_context(|| format!("cannot write {value} to {path}"))
    }
}

/// Mappings of the zero page that KSM counts for this process, whoever of KSM and SKSM has placed them.
pub fn zero_pages_here() -> Result<i64> {
    ksm_stat(std::process::id() as i32, "ksm_zero_pages")
}

/// A line of `/proc/PID/ksm_stat`, which has what SKSM did for the process as well.
pub fn ksm_stat(pid: i32, name: &str) -> Result<i64> {
    let path = format!("/proc/{pid}/ksm_stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    let found = stat.lines().find_map(value);
    let text = found.with_context(|| format!("{path} has no {name}"))?;
    (text.trim().parse()).with_context(|| format!("{name} in {path} is {text:?}"))
}

/// All counters of SKSM at one moment; the difference of two tells what happened between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Merged pages mapped more than once.
    pub pages_shared: i64,
    /// Mappings of merged pages beyond the first: pages saved.
    pub pages_sharing: i64,
    /// Mappings of the zero page that replaced a page of zeros.
    pub pages_zero: i64,
    /// Published pages with one mapper.
    pub pages_unshared: i64,
    pub calls: i64,
    pub pages_scanned: i64,
    pub pages_merged: i64,
    pub pages_published: i64,
    pub pages_withdrawn: i64,
    pub pages_busy: i64,
    pub bytes_metadata: i64,
}

impl Counters {
    pub fn now() -> Result<Self> {
        Ok(Self {
            pages_shared: SKSM.number("pages_shared")?,
            pages_sharing: SKSM.number("pages_sharing")?,
            pages_zero: SKSM.number("pages_zero")?,
            pages_unshared: SKSM.number("pages_unshared")?,
            calls: SKSM.number("calls")?,
            pages_scanned: SKSM.number("pages_scanned")?,
            pages_merged: SKSM.number("pages_merged")?,
            pages_published: SKSM.number("pages_published")?,
            pages_withdrawn: SKSM.number("pages_withdrawn")?,
            pages_busy: SKSM.number("pages_busy")?,
            bytes_metadata: SKSM.number("bytes_metadata")?,
        })
    }

    /// What has changed since `self` was read.
    pub fn change(&self) -> Result<Self> {
        Ok(Self::now()? - *self)
    }

    /// What must be as before once every process that merged has gone.
    pub fn held(&self) -> [(&'static str, i64); 5] {
        [
            ("pages_shared", self.pages_shared),
            ("pages_sharing", self.pages_sharing),
            ("pages_unshared", self.pages_unshared),
            ("pages_zero", self.pages_zero),
            ("bytes_metadata", self.bytes_metadata),
        ]
    }
}

impl Sub for Counters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            pages_shared: self.pages_shared - earlier.pages_shared,
            pages_sharing: self.pages_sharing - earlier.pages_sharing,
            pages_zero: self.pages_zero - earlier.pages_zero,
            pages_unshared: self.pages_unshared - earlier.pages_unshared,
            calls: self.calls - earlier.calls,
            pages_scanned: self.pages_scanned - earlier.pages_scanned,
            pages_merged: self.pages_merged - earlier.pages_merged,
            pages_published: self.pages_published - earlier.pages_published,
            pages_withdrawn: self.pages_withdrawn - earlier.pages_withdrawn,
            pages_busy: self.pages_busy - earlier.pages_busy,
            bytes_metadata: self.bytes_metadata - earlier.bytes_metadata,
        }
    }
}
