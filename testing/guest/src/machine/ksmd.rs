//! KSM's thread: set to work, watched, stopped.

use std::time::{Duration, Instant};

use anyhow::Result;
use sksm_records::ksmd::{KSMD_STARTS, KSMD_STOPS, KSMD_WAITS, Ksm, KsmEnd};

use crate::machine::cpu;
use crate::machine::sysfs::KSM;

const STOP: &str = "0";
const RUN: &str = "1";
const UNMERGE: &str = "2";

/// How long the host watches the kernel without ksmd, to know what it takes by itself.
const WATCH_IDLE: Duration = Duration::from_secs(5);

/// A page is remembered in the first scan, compared in the second and merged with others by the third. So many more without
/// one more page saved, and there will be none.
const SCANS_WITHOUT_PROGRESS: i64 = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    /// As the kernel starts with.
    Default,
    /// No sleep between batches.
    Unthrottled,
}

impl Tuning {
    /// Often enough to time it well, rarely enough to leave it the CPU.
    fn look_every(self) -> Duration {
        match self {
            Self::Default => Duration::from_millis(200),
            Self::Unthrottled => Duration::from_millis(5),
        }
    }
}

/// Lets it merge until so many pages are saved, or it has no hope to. Unless its host watches, nobody can tell what it took where
/// the kernel cannot.
pub fn run(
    tuning: Tuning,
    target: i64,
    timeout: Duration,
    watched: bool,
    progress: &dyn Fn(String),
) -> Result<Ksm> {
    let kept = Kept::read()?;
    if tuning == Tuning::Unthrottled {
        KSM.write("sleep_millisecs", 0)?;
        // Stopping waits for the batch, so not all at once.
        KSM.write("pages_to_scan", 10_000)?;
    }
    let mut ksm = Ksm {
        sleep_millisecs: KSM.number("sleep_millisecs")?,
        pages_to_scan: KSM.number("pages_to_scan")?,
        target,
        end: KsmEnd::TimedOut,
        seconds: 0.0,
        cpu_seconds: None,
        pages_scanned: 0,
        full_scans: 0,
    };
    let cpu_before = cpu::of_ksmd()?;
    if cpu_before.is_none() && watched {
        progress(KSMD_WAITS.to_owned());
        std::thread::sleep(WATCH_IDLE);
    }
    let scanned_before = KSM.number("pages_scanned")?;
    let scans_before = KSM.number("full_scans")?;
    let (mut best, mut best_scans) = (0, scans_before);
    let mut told = Duration::ZERO;

    progress(KSMD_STARTS.to_owned());
    let start = Instant::now();
    KSM.write("run", RUN)?;
    ksm.end = loop {
        std::thread::sleep(tuning.look_every());
        let saved = KSM.number("pages_sharing")?;
        let scans = KSM.number("full_scans")?;
        if saved > best {
            (best, best_scans) = (saved, scans);
        }
        let elapsed = start.elapsed();
        if saved >= target {
            break KsmEnd::Reached;
        }
        if scans - best_scans >= SCANS_WITHOUT_PROGRESS {
            break KsmEnd::Stalled;
        }
        if elapsed >= timeout {
            break KsmEnd::TimedOut;
        }
        if elapsed - told >= Duration::from_secs(2) {
            told = elapsed;
            progress(format!(
                "ksmd has saved {saved} of {target} pages in {} s",
                elapsed.as_secs()
            ));
        }
    };
    ksm.seconds = start.elapsed().as_secs_f64();
    ksm.pages_scanned = KSM.number("pages_scanned")? - scanned_before;
    ksm.full_scans = KSM.number("full_scans")? - scans_before;
    if let (Some(before), Some(after)) = (cpu_before, cpu::of_ksmd()?) {
        ksm.cpu_seconds = Some(after - before);
    }
    progress(KSMD_STOPS.to_owned());
    // What is merged stays merged.
    KSM.write("run", STOP)?;
    kept.restore()?;
    Ok(ksm)
}

/// Takes apart what it has merged, and all that it remembers; then it is stopped.
pub fn forget() -> Result<()> {
    KSM.write("run", UNMERGE)?;
    KSM.write("run", STOP)
}

/// The settings that a run changes; put back when dropped.
struct Kept(Vec<(&'static str, i64)>);

impl Kept {
    fn read() -> Result<Self> {
        let names = ["sleep_millisecs", "pages_to_scan"];
        let values = names.into_iter().map(|name| Ok((name, KSM.number(name)?)));
        Ok(Self(values.collect::<Result<_>>()?))
    }

    fn restore(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        self.0
            .drain(..)
            .try_for_each(|(name, value)| KSM.write(name, value))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            eprintln!("{error:#}");
        }
    }
}
