//! The classic check in six steps, each of which also looks at the physical pages.

use std::io::stdin;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use sksm_guest::harness::report;
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::pagemap::Flags;

/// Merges two equal pages, two equal two-page objects and a zero page, twice touched and merged again
///
/// Without options all steps run and each reports in one line. Needs root, to see physical pages.
#[derive(Parser)]
struct Options {
    /// Stop after this step and wait for ever, to look at the process from outside
    #[arg(short, long, value_enum, ignore_case = true, value_name = "STEP")]
    stop: Option<Step>,
    /// Wait for Enter between steps
    #[arg(short, long)]
    pause: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Set up; a shared mapping is left alone
    A,
    /// Merge
    B,
    /// Touch: copy-on-write
    C,
    /// Merge again
    D,
    /// Touch again
    E,
    /// Merge a third time
    F,
}

impl Step {
    const ALL: [(Step, &'static str); 6] = [
        (Step::A, "shared-mapping"),
        (Step::B, "merge"),
        (Step::C, "touch"),
        (Step::D, "merge-again"),
        (Step::E, "touch-again"),
        (Step::F, "merge-a-third-time"),
    ];
}

struct Objects {
    shared: Map,
    /// Each with its twin: a page, and an object of two pages.
    pages: [Map; 2],
    pairs: [Map; 2],
    zero: Map,
    /// What the last touch left in the first word of every page, the zero page excepted.
    touched: Option<u64>,
}

impl Objects {
    fn new() -> Result<Self> {
        let shared = Map::new(2, WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
        shared.fill_all(|_| 1);
        Ok(Self {
            shared,
            pages: [Map::filled(&[1])?, Map::filled(&[1])?],
            pairs: [Map::filled(&[2, 3])?, Map::filled(&[2, 3])?],
            zero: Map::filled(&[0])?,
            touched: None,
        })
    }

    fn run(&mut self, step: Step) -> Result<()> {
        match step {
            Step::A => self.leave_shared_alone(),
            Step::B | Step::D | Step::F => self.merge(),
            Step::C | Step::E => self.touch(step as u64),
        }
    }

    fn leave_shared_alone(&self) -> Result<()> {
        let before = self.shared.pfns()?;
        self.shared.merge()?;
        ensure!(
            self.shared.pfns()? == before,
            "the pages of a shared mapping changed"
        );
        self.shared.expect_all(|_| 1)?;
        self.expect_apart()
    }

    fn private(&self) -> impl Iterator<Item = &Map> {
        self.pages.iter().chain(&self.pairs).chain([&self.zero])
    }

    fn merge(&self) -> Result<()> {
        self.private().try_for_each(Map::merge)?;
        for [one, other] in [&self.pages, &self.pairs] {
            let (one, other) = (one.pfns()?, other.pfns()?);
            ensure!(
                one == other,
                "twins on different pages: {one:x?}, {other:x?}"
            );
            for pfn in one {
                ensure!(
                    Flags::of(pfn)?.ksm(),
                    "page {pfn:#x} is not marked as merged"
                );
            }
        }
        let zero = self.zero.pfn(0)?;
        ensure!(
            Flags::of(zero)?.zero_page(),
            "the page of zeros is on page {zero:#x}, not on the zero page"
        );
        self.expect_contents()
    }

    fn touch(&mut self, value: u64) -> Result<()> {
        self.touched = Some(value);
        for map in self.pages.iter().chain(&self.pairs) {
            (0..map.pages()).for_each(|page| map.put(page, 0, value));
        }
        self.zero.put(0, 0, 0);
        self.expect_apart()
    }

    fn expect_apart(&self) -> Result<()> {
        let mut pfns = Vec::new();
        for map in self.private() {
            pfns.extend(map.pfns()?);
        }
        let zero = pfns[pfns.len() - 1];
        ensure!(!Flags::of(zero)?.zero_page(), "still the zero page");
        pfns.sort_unstable();
        pfns.dedup();
        ensure!(pfns.len() == 7, "7 pages of memory on {} pages", pfns.len());
        self.expect_contents()
    }

    fn expect_contents(&self) -> Result<()> {
        for map in &self.pages {
            self.expect_touched(map, 0, 1)?;
        }
        for map in &self.pairs {
            self.expect_touched(map, 0, 2)?;
            self.expect_touched(map, 1, 3)?;
        }
        self.zero.expect(0, 0)
    }

    fn expect_touched(&self, map: &Map, page: usize, id: u64) -> Result<()> {
        let Some(value) = self.touched else {
            return map.expect(page, id);
        };
        let found = map.get(page, 0);
        ensure!(found == value, "wrote {value} and read {found}");
        map.expect_after(page, 1, id)
    }
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut objects = Objects::new()?;
    let mut failed = false;
    for (step, name) in Step::ALL {
        let start = Instant::now();
        let result = objects.run(step);
        failed |= !report::line(&format!("selftest/{step:?}-{name}"), start, result);
        if options.stop == Some(step) {
            eprintln!(
                "stopped after step {step:?}; process {}; Ctrl-C ends it",
                std::process::id()
            );
            loop {
                std::thread::park();
            }
        }
        if options.pause && step != Step::F {
            eprintln!("process {}; Enter goes on", std::process::id());
            stdin().read_line(&mut String::new())?;
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}
