//! When memory is to be merged: where there is plenty, it is left alone.

use std::fmt;
use std::fs;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A condition, and as it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    Always,
    /// Less than such a share of all memory is available.
    AvailableBelow(f64),
    /// Some task waited for memory in so many per cent of the last ten seconds.
    Pressure(f64),
}

const ADVICE: &str = "give always, available-below=20% or pressure=10";

impl FromStr for When {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str, most: f64| {
            let number = text.trim().trim_end_matches('%').trim().parse::<f64>().ok();
            number
                .filter(|number| *number > 0.0 && *number <= most)
                .ok_or(ADVICE)
        };
        match text.split_once('=') {
            None if text == "always" => Ok(When::Always),
            Some(("available-below", share)) => {
                Ok(When::AvailableBelow(number(share, 100.0)? / 100.0))
            }
            Some(("pressure", percent)) => Ok(When::Pressure(number(percent, 100.0)?)),
            _ => Err(ADVICE),
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            When::Always => write!(f, "always"),
            When::AvailableBelow(share) => write!(f, "available-below={}%", share * 100.0),
            When::Pressure(percent) => write!(f, "pressure={percent}"),
        }
    }
}

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub total: u64,
    pub available: u64,
    pub swap_free: u64,
}

impl Memory {
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        Memory {
            total: field("MemTotal:"),
            available: field("MemAvailable:"),
            swap_free: field("SwapFree:"),
        }
    }
}

/// Whether the condition holds; once it does, until it is clearly over.
#[derive(Debug, Default)]
pub struct Gate {
    open: bool,
    /// When it was looked at, and what came of it.
    last: Option<(Instant, Option<String>)>,
}

/// What was found holds for so long.
const EVERY: Duration = Duration::from_secs(1);

/// It is over when so much more is available than the condition says, or the pressure is half of it.
const ABOVE: f64 = 1.25;

impl Gate {
    /// The same as [`Gate::closed`], which it asks now and then.
    pub fn closed_by(&mut self, when: When) -> Result<Option<String>> {
        if let Some((_, why)) = self.last.as_ref().filter(|(at, _)| at.elapsed() < EVERY) {
            return Ok(why.clone());
        }
        let why = self.closed(when)?;
        self.last = Some((Instant::now(), why.clone()));
        Ok(why)
    }

    /// Why nothing is to be done; none where it is.
    pub fn closed(&mut self, when: When) -> Result<Option<String>> {
        let (open, why) = match when {
            When::Always => (true, String::new()),
            When::AvailableBelow(share) => {
                let memory = Memory::read();
                let found = memory.available as f64 / memory.total.max(1) as f64;
                let limit = if self.open { share * ABOVE } else { share };
                (
                    found < limit,
                    format!("{:.0} % of memory is available", found * 100.0),
                )
            }
            When::Pressure(percent) => {
                let text = fs::read_to_string("/proc/pressure/memory").context(
                    "this kernel does not tell how scarce memory is (CONFIG_PSI, psi=1)",
                )?;
                let found = pressure(&text).context("/proc/pressure/memory is not understood")?;
                let limit = if self.open { percent / 2.0 } else { percent };
                (found >= limit, format!("memory pressure is {found} %"))
            }
        };
        self.open = open;
        Ok((!open).then_some(why))
    }
}

/// The share of the last ten seconds in which some task waited.
fn pressure(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let word = line
        .split(' ')
        .find_map(|word| word.strip_prefix("avg10="))?;
    word.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_understood() {
        for (text, right) in [
            ("always", When::Always),
            ("available-below=20%", When::AvailableBelow(0.2)),
            ("available-below=12.5", When::AvailableBelow(0.125)),
            ("pressure=10", When::Pressure(10.0)),
        ] {
            assert_eq!(text.parse(), Ok(right), "{text}");
            assert_eq!(right.to_string().parse(), Ok(right));
        }
        for text in [
            "",
            "never",
            "pressure",
            "pressure=0",
            "available-below=101%",
            "pressure=x",
        ] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_kernels_files_are_understood() {
        let memory = Memory::parse(
            "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\nSwapFree: 7 kB\n",
        );
        assert_eq!(
            (memory.total, memory.available, memory.swap_free),
            (102_400, 40_960, 7168)
        );
        let text = "some avg10=12.34 avg60=1.00 avg300=0.00 total=5\nfull avg10=9.00 avg60=0\n";
        assert_eq!(pressure(text), Some(12.34));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn what_has_begun_goes_on_for_a_while() {
        let memory = Memory::read();
        let share = memory.available as f64 / memory.total as f64;
        let mut gate = Gate::default();
        let above = |gate: &mut Gate, factor: f64| {
            gate.closed(When::AvailableBelow(share * factor)).unwrap()
        };
        assert!(above(&mut gate, 0.9).is_some());
        assert!(above(&mut gate, 1.1).is_none());
        assert!(above(&mut gate, 0.9).is_none());
        assert!(above(&mut gate, 0.6).unwrap().contains("available"));
    }
}
