//! What the policy itself takes for each page and round: the world it sees costs nothing, and its time passes as fast as it can.
//!
//! `cargo bench -p sksm-scan`

use std::ops::Range;
use std::time::{Duration, Instant};

use sksm_scan::{
    BLOCK, Content, Found, Gone, Known, Merged, Scanner, Seen, Settings, Whole, World,
};

/// Processes with as many pages each, no two the same; it knows who writes, as a [`sksm_scan::Tracker`] does, or does not.
struct Still {
    now: Duration,
    processes: u64,
    pages: u64,
    tracks: bool,
    looked: u64,
}

impl World for Still {
    fn now(&self) -> Duration {
        self.now
    }

    fn cpu(&self) -> Duration {
        Duration::ZERO
    }

    fn processes(&mut self, see: &mut dyn FnMut(Found)) {
        (0..self.processes).for_each(|id| see(Found::new(id, 0)));
    }

    fn layout(&mut self, _: u64, see: &mut dyn FnMut(sksm_scan::Range)) -> Result<(), Gone> {
        see(sksm_scan::Range::new(0, self.pages, self.pages));
        Ok(())
    }

    fn look(
        &mut self,
        id: u64,
        pages: Range<u64>,
        known: &Known,
        see: &mut dyn FnMut(u64, Seen),
    ) -> Result<Whole, Gone> {
        self.looked += pages.end - pages.start;
        if self.tracks && known.has(pages.start) {
            return Ok(Whole::Unchanged);
        }
        let first = id * self.pages;
        pages.for_each(|page| see(page, Seen::Own((first + page) as u32)));
        Ok(Whole::Pages)
    }

    fn read(
        &mut self,
        _: u64,
        pages: &[u64],
        see: &mut dyn FnMut(u64, Content),
    ) -> Result<(), Gone> {
        for page in pages {
            see(*page, Content::new(*page as u32, u128::from(*page)));
        }
        Ok(())
    }

    fn merge(&mut self, _: u64, _: &[Range<u64>]) -> Result<Merged, Gone> {
        Ok(Merged::default())
    }

    fn zero(&self) -> u32 {
        u32::MAX
    }
}

fn measure(name: &str, processes: u64, pages: u64, tracks: bool) {
    let mut world = Still {
        now: Duration::from_secs(1),
        processes,
        pages,
        tracks,
        looked: 0,
    };
    let mut settings = Settings::default();
    settings.cpu = None;
    let mut scanner = Scanner::new(settings, &world);
    for round in 1..=6 {
        let before = (world.looked, world.now);
        let (mut looks, mut others) = (Duration::ZERO, Duration::ZERO);
        while world.looked < before.0 + processes * pages {
            let (looked, started) = (world.looked, Instant::now());
            let step = scanner.step(&mut world);
            match world.looked > looked {
                true => looks += started.elapsed(),
                false => others += started.elapsed(),
            }
            // As the kernel's part would take.
            world.now += step.wait().unwrap_or(Duration::from_micros(20));
        }
        let nanos = looks.as_nanos() as f64 / (world.looked - before.0) as f64;
        let passed = (world.now - before.1).as_secs();
        println!(
            "{name}, round {round}: {nanos:.1} ns a page; searches and lists {others:.1?} in {passed} s"
        );
    }
}

fn main() {
    for (tracks, how) in [(true, "told who writes"), (false, "samples")] {
        measure(&format!("4 GiB, {how}"), 1, 1 << 20, tracks);
        measure(
            &format!("2000 processes of 2 MiB, {how}"),
            2000,
            BLOCK,
            tracks,
        );
        measure(
            &format!("10,000 processes of 40 KiB, {how}"),
            10_000,
            10,
            tracks,
        );
    }
}
