//! The verb `test`: host checks, then every test program in every kernel, side by side where the machine allows.

mod args;
mod crates;
mod guest_tests;
mod host_tests;
mod junit;
mod kernel_tests;
mod litmus;
mod man_pages;
mod passes;
mod published;
mod results;
mod room;
mod skips;
mod unit_tests;

use std::{
    panic::resume_unwind,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread::{self, ScopedJoinHandle},
};

use anyhow::Result;

use crate::{
    ground::project::Project,
    guest::programs,
    kernel::{self, Arch, Kernel, Origin},
};
pub use args::Args;
use results::Run;
use room::Room;

/// How much builds step back behind guests: kernels are made of what these leave of the processors while they wait.
const NICE: i32 = 10;

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    let run = Run::new(project, args);
    if host_tests::any(args) {
        host_tests::run(&run, origin)?;
    }
    let mut programs = None;
    if may_match_guest(args) {
        match programs::guest_programs(project) {
            Ok(dir) => programs = Some(dir),
            Err(error) => run.fail("host/guest-programs", error)?,
        }
    }
    build_and_test(&run, programs.as_deref(), origin)?;
    let tally = run.tally();
    if tally.is_empty() {
        eprintln!("{}", nothing(project, args));
    }
    print!("{}", tally.longest());
    println!("{}", tally.closing());
    Ok(if tally.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds one kernel after the other, while guests of those that are there run their tests.
fn build_and_test(run: &Run, programs: Option<&Path>, origin: &Origin) -> Result<()> {
    let room = &Room::of_this_machine();
    thread::scope(|scope| {
        let (built, to_run) = mpsc::channel();
        let builder = scope.spawn(move || -> Result<()> {
            // Of this thread, and of what it starts: guests are started by the other.
            let _ = rustix::process::nice(NICE);
            let arches = run.args.arches().iter();
            for (&arch, programs) in arches.filter_map(|arch| Some((arch, programs?))) {
                match prepare(run, room, arch, programs, origin) {
                    Ok(work) => work
                        .into_iter()
                        .for_each(|work| drop(built.send((arch, work)))),
                    Err(error) => run.fail(&format!("{arch}/run"), error)?,
                }
            }
            drop(built);
            host_tests::run_late(run, origin)
        });
        let guests: Vec<_> = to_run
            .into_iter()
            .map(|(arch, work): (Arch, Work)| (arch, scope.spawn(move || work.run(run, room))))
            .collect();
        join(builder)?;
        for (arch, guest) in guests {
            if let Err(error) = join(guest) {
                run.fail(&format!("{arch}/run"), error)?;
            }
        }
        Ok(())
    })
}

fn join<T>(thread: ScopedJoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// What one guest has to do.
enum Work {
    Programs(Arc<guest_tests::Queue>),
    Selftests(Kernel, kernel_tests::Chosen),
}

impl Work {
    fn run(self, run: &Run, room: &Room) -> Result<()> {
        match self {
            Work::Programs(queue) => guest_tests::work(run, room, &queue),
            Work::Selftests(kernel, chosen) => kernel_tests::run(run, room, &kernel, &chosen),
        }
    }
}

/// Builds a kernel, and says what its guests have to do.
fn prepare(
    run: &Run,
    room: &Room,
    arch: Arch,
    programs: &Path,
    origin: &Origin,
) -> Result<Vec<Work>> {
    let plan = guest_tests::plan(run.args, arch, programs)?;
    let selftests = arch == Arch::X86_64 && wants_selftests(run.args);
    if plan.is_empty() && !selftests {
        return Ok(Vec::new());
    }
    let kernel = match kernel::build(run.project, arch, origin) {
        Ok(kernel) => kernel,
        Err(error) => {
            run.fail(&format!("{arch}/build"), error)?;
            return Ok(Vec::new());
        }
    };
    let queue = Arc::new(guest_tests::Queue::new(run, room, kernel.clone(), plan)?);
    let guests = (0..queue.guests).map(|_| Work::Programs(queue.clone()));
    let mut work: Vec<_> = guests.collect();
    if selftests {
        match kernel_tests::prepare(run, &kernel, origin) {
            Ok(Some(chosen)) => work.push(Work::Selftests(kernel, chosen)),
            Ok(None) => {}
            Err(error) => run.fail(kernel_tests::ALL, error)?,
        }
    }
    Ok(work)
}

/// Whether a kernel is needed, as far as one can tell before names are known.
fn may_match_guest(args: &Args) -> bool {
    let mut arches = args.arches().iter();
    arches.any(|&arch| guest_tests::may_match(args.pattern(), arch))
}

fn wants_selftests(args: &Args) -> bool {
    !args.quick && !args.host && kernel_tests::may_match(args.pattern())
}

/// Why no test has run.
fn nothing(project: &Project, args: &Args) -> String {
    let pattern = args.pattern();
    let all = Args {
        quick: false,
        host: false,
        ..args.clone()
    };
    let left_out =
        |option| format!("{option} leaves out every test whose name contains `{pattern}`");
    match (args.host, args.quick) {
        (false, false) => format!("no test's name contains `{pattern}`"),
        _ if !exists(project, &all).unwrap_or(false) => {
            format!("no test's name contains `{pattern}`")
        }
        (true, _) => left_out("--host"),
        (false, true) => left_out("--quick"),
    }
}

fn exists(project: &Project, args: &Args) -> Result<bool> {
    if host_tests::any(args) || wants_selftests(args) {
        return Ok(true);
    }
    if !may_match_guest(args) {
        return Ok(false);
    }
    let programs = programs::guest_programs(project)?;
    for &arch in args.arches() {
        if !guest_tests::plan(args, arch, &programs)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(quick: bool, only: &str) -> Args {
        Args {
            quick,
            only: Some(only.into()),
            ..Args::default()
        }
    }

    #[test]
    fn what_quick_leaves_out_is_told_from_what_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        for only in ["host/deb-kernel", "selftests/cow"] {
            let said = nothing(&project, &args(true, only));
            assert!(said.starts_with("--quick leaves out"), "{said}");
        }
        let host = |only| Args {
            host: true,
            ..args(false, only)
        };
        let said = nothing(&project, &host("host/patches"));
        assert!(said.starts_with("--host leaves out"), "{said}");
        let said = nothing(&project, &args(true, "host/nonsense"));
        assert!(said.starts_with("no test's name"), "{said}");
        assert!(host_tests::any(&args(false, "host/deb-kernel")));
        assert!(!host_tests::any(&args(true, "host/deb-kernel")));
        assert!(host_tests::any(&args(true, "host/deb")));
        assert!(host_tests::any(&host("host/deb")));
        assert!(!host_tests::any(&host("host/kernel")));
        assert!(!may_match_guest(&host("fork")));
    }
}
