//! Runs the programs in one kernel: a column of the table.

use std::{
    cell::RefCell,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    outcome::{Dialect, Parser, Status},
    programs::{Program, TRIES},
    table::Entry,
};
use crate::{
    ground::project::Project,
    guest::{Boot, Cmd, End, Guest, Limit, Output},
    kernel::Kernel,
    terminal::progress::Step,
};

/// What a boot needs before the first program: they write beside themselves, and some want swap.
const PREPARE: &str = r#"
set -e
mkdir /tmp/selftests
cp "$1"/* /tmp/selftests
chmod 755 /tmp/selftests
echo 512M >/sys/block/zram0/disksize
mkswap /dev/zram0 >/dev/null
swapon /dev/zram0
"#;

/// What comes before each: memory in one piece, and as many huge pages as it wants.
const BEFORE: &str = r"
cd /tmp/selftests
echo 0 >/proc/sys/vm/nr_hugepages
echo 3 >/proc/sys/vm/drop_caches
echo 1 >/proc/sys/vm/compact_memory
echo $1 >/proc/sys/vm/nr_hugepages
";

/// How one program fared.
pub struct Outcome {
    pub entry: Entry,
    /// The kernel's complaints meanwhile.
    pub splats: Vec<String>,
    /// It came to its limit.
    pub hung: bool,
    pub seconds: u64,
    pub log: PathBuf,
}

/// Runs the programs in turn. One that hangs or upsets the kernel takes the guest with it; the next gets a new one.
pub fn run(
    project: &Project,
    kernel: &Kernel,
    built: &Path,
    programs: &[&Program],
    mut on_outcome: impl FnMut(&Step, &Program, Outcome) -> Result<()>,
) -> Result<()> {
    let mut guest: Option<Guest> = None;
    for program in programs {
        let mut running = match guest.take() {
            Some(guest) => guest,
            None => start(project, kernel, built)?,
        };
        let step = Step::begin(format!("{} in the {} kernel", program.name(), kernel.arch));
        let (mut outcome, mut healthy) = run_one(project, kernel, program, &mut running, &step)?;
        if let Some(race) = program.race {
            for _ in 1..TRIES {
                if !healthy || outcome.entry.end != Status::Fail {
                    break;
                }
                step.print(&format!(
                    "{}: failed, so it runs again ({race})",
                    program.name()
                ));
                (outcome, healthy) = run_one(project, kernel, program, &mut running, &step)?;
            }
        }
        if healthy {
            guest = Some(running);
        } else {
            outcome.splats = running.finish()?.0;
        }
        on_outcome(&step, program, outcome)?;
    }
    if let Some(guest) = guest {
        let (splats, console) = guest.finish()?;
        if !splats.is_empty() {
            bail!(
                "the {} kernel complained when it powered off:\n  {}\nconsole log: {}",
                kernel.arch,
                splats.join("\n  "),
                console.display()
            );
        }
    }
    Ok(())
}

/// The machine that they run on: some want to move memory between nodes, while two threads use it.
pub fn boot<'a>(project: &'a Project, kernel: &'a Kernel) -> Boot<'a> {
    Boot::new(project, kernel).smp(3).parameters("numa=fake=2")
}

fn start(project: &Project, kernel: &Kernel, built: &Path) -> Result<Guest> {
    let mut guest = boot(project, kernel).start()?;
    let built = built.to_string_lossy();
    let prepare = Cmd::new(["sh", "-c", PREPARE, "sh", &built]).stdout(Output::Capture);
    let (end, _) = guest.exec(prepare, Some(Limit::Whole(Duration::from_secs(120))))?;
    if end != End::Exited(0) {
        bail!(
            "the {} kernel's guest cannot be prepared for the selftests ({end:?})",
            kernel.arch
        );
    }
    Ok(guest)
}

/// Runs one; also says whether the guest can be used again.
fn run_one(
    project: &Project,
    kernel: &Kernel,
    program: &Program,
    guest: &mut Guest,
    step: &Step,
) -> Result<(Outcome, bool)> {
    let name = program.name();
    let path = project.log(&format!("selftest-{}-{name}", kernel.arch))?;
    let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let log = RefCell::new(log);
    let dialect = program.dialect(kernel.base);
    let parser = RefCell::new(Parser::new(dialect));
    let script = match dialect {
        Dialect::Says(_) => format!("{BEFORE}\n{} 2>&1 | cat", program.command),
        _ => format!("{BEFORE}\nexec {} 2>&1", program.command),
    };
    let pages = program.huge_pages.to_string();
    let started = Instant::now();
    let mut on_line = |line: &str| {
        // A full disk shows elsewhere.
        let _ = writeln!(
            log.borrow_mut(),
            "[{:6.1}] {line}",
            started.elapsed().as_secs_f64()
        );
        match parser.borrow_mut().line(line) {
            Some(test) => step.detail(test),
            None => step.tick(),
        }
    };
    on_line(&format!("$ {}", program.command));
    let (end, _) = guest.exec(
        Cmd::new(["sh", "-c", &script, "sh", &pages])
            .stdout(Output::Lines(Box::new(&mut on_line)))
            // The agent's report on what hangs.
            .stderr(Output::Lines(Box::new(|line| {
                let _ = writeln!(log.borrow_mut(), "{line}");
            }))),
        Some(Limit::Whole(program.limit())),
    )?;
    let splats = guest.splats()?;
    let (status, why) = match end {
        End::Exited(0) => (Status::Pass, String::new()),
        End::Exited(4) => (Status::Skip, String::new()),
        End::Exited(status) => (Status::Fail, format!("status {status}")),
        End::TimedOut => (
            Status::Fail,
            format!("not done after {} s", program.limit().as_secs()),
        ),
        End::Panicked => (Status::Fail, "the kernel panicked".into()),
        End::Died => (Status::Fail, "the kernel went away".into()),
    };
    let healthy = guest.alive() && splats.is_empty() && end != End::TimedOut;
    let outcome = Outcome {
        entry: Entry::new(status, why, parser.into_inner().finish()),
        splats,
        hung: end == End::TimedOut,
        seconds: started.elapsed().as_secs(),
        log: path,
    };
    Ok((outcome, healthy))
}
