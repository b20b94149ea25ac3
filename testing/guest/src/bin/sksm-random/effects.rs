//! What disturbances came to: that a disturber was let do its work says little.

use std::fmt;

use anyhow::Result;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::machine::system::vmstat;

/// Counters of the whole system, and what they count; those of SKSM are in its own directory.
const COUNTERS: [(&str, &str); 7] = [
    ("pswpout", "pages swapped out"),
    ("pswpin", "swapped in"),
    ("pgmigrate_success", "moved"),
    ("pages_withdrawn", "taken back"),
    ("pages_swapped", "merged and swapped out"),
    ("pages_swapped_in", "merged and back from swap"),
    ("pages_refused", "passed over"),
];

fn counter(name: &str) -> Result<u64> {
    match name.starts_with("pages_") {
        true => Ok(SKSM.number(name)? as u64),
        false => vmstat(name),
    }
}

pub struct Effects([u64; COUNTERS.len()]);

impl Effects {
    pub fn now() -> Result<Self> {
        let mut now = Self(Default::default());
        for ((name, _), value) in COUNTERS.iter().zip(&mut now.0) {
            *value = counter(name)?;
        }
        Ok(now)
    }

    /// What has happened since `self` was read.
    pub fn since(&self) -> Result<Self> {
        let mut now = Self::now()?;
        for (now, then) in now.0.iter_mut().zip(self.0) {
            *now -= then;
        }
        Ok(now)
    }

    pub fn counts(&self) -> impl Iterator<Item = (String, u64)> {
        let names = COUNTERS.iter().map(|(name, _)| (*name).to_owned());
        names.zip(self.0)
    }
}

impl fmt::Display for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, ((_, what), value)) in COUNTERS.iter().zip(self.0).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{value} {what}")?;
        }
        Ok(())
    }
}
