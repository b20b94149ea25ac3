//! ksmd's CPU time, as the host accounts for it: UML's own account is too coarse, and only its host sees it as a process that
//! does nothing else.

use std::collections::HashSet;

use sksm_records::ksmd::{KSMD_STARTS, KSMD_STOPS, KSMD_WAITS, Ksm};

/// Listens to the guest's progress, and reads the clocks when it speaks of ksmd.
#[derive(Default)]
pub struct KsmdWatch {
    waits: Option<Reading>,
    starts: Option<Reading>,
    /// CPU seconds of each stretch, in their order.
    taken: Vec<Option<f64>>,
}

#[derive(Clone, Copy)]
struct Reading {
    at: std::time::Instant,
    /// Of this program's descendants: all of them are the guest.
    cpu_seconds: f64,
}

impl KsmdWatch {
    pub fn hear(&mut self, line: &str) {
        if line.ends_with(KSMD_WAITS) {
            self.waits = Reading::now();
        } else if line.ends_with(KSMD_STARTS) {
            self.starts = Reading::now();
        } else if line.ends_with(KSMD_STOPS) {
            let taken = self
                .waits
                .take()
                .zip(self.starts.take())
                .zip(Reading::now());
            self.taken
                .push(taken.map(|((waits, starts), stops)| beyond_idle(waits, starts, stops)));
        }
    }

    /// Fills in what the guest could not know; the runs of ksmd in the order they were.
    pub fn fill_in<'a>(&self, runs: impl Iterator<Item = &'a mut Ksm>) {
        for (ksm, taken) in runs.zip(&self.taken) {
            ksm.cpu_seconds = ksm.cpu_seconds.or(*taken);
        }
    }
}

/// What the kernel took while ksmd worked, beyond what it takes for its ticks all the time.
fn beyond_idle(waits: Reading, starts: Reading, stops: Reading) -> f64 {
    let idle = starts.at.duration_since(waits.at).as_secs_f64();
    let busy = stops.at.duration_since(starts.at).as_secs_f64();
    let idle_share = (starts.cpu_seconds - waits.cpu_seconds) / idle.max(f64::EPSILON);
    (stops.cpu_seconds - starts.cpu_seconds - idle_share * busy).max(0.0)
}

impl Reading {
    fn now() -> Option<Self> {
        Some(Self {
            at: std::time::Instant::now(),
            cpu_seconds: cpu_seconds_of_descendants().ok()?,
        })
    }
}

/// What the processes that this one started have taken so far.
pub fn cpu_seconds_of_descendants() -> procfs::ProcResult<f64> {
    // A process that ends meanwhile is none of those that matter.
    let stats: Vec<_> = procfs::process::all_processes()?
        .filter_map(|process| process.ok()?.stat().ok())
        .collect();
    let mut family = HashSet::from([std::process::id() as i32]);
    let mut ticks = 0;
    // Until nobody is found any more: a child's number may be lower than its parent's.
    loop {
        let known = family.len();
        for stat in &stats {
            if family.contains(&stat.ppid) && family.insert(stat.pid) {
                ticks += stat.utime + stat.stime;
            }
        }
        if family.len() == known {
            return Ok(ticks as f64 / procfs::ticks_per_second() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_idle_share_is_taken_off() {
        let start = Instant::now();
        let reading = |seconds, cpu_seconds| Reading {
            at: start + Duration::from_secs(seconds),
            cpu_seconds,
        };
        let taken = beyond_idle(reading(0, 1.0), reading(10, 1.5), reading(30, 4.5));
        assert!((taken - 2.0).abs() < 1e-9, "{taken}");
    }

    #[test]
    fn a_child_that_works_is_counted() {
        let before = cpu_seconds_of_descendants().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut taken = 0.0;
        while taken < 0.05 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            taken = cpu_seconds_of_descendants().unwrap() - before;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(taken >= 0.05, "{taken}");
    }
}
