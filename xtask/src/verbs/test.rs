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
mod tested;
mod unit_tests;
mod workspace;

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
use host_tests::Check;
use results::Run;
use room::Room;
use tested::Tested;

/// How much builds step back behind guests: kernels are made of what these leave of the processors while they wait.
const NICE: i32 = 10;

/// `asked` is what the command line says of bases; without it, all have their turn.
pub fn run(project: &Project, args: &Args, asked: Option<&Origin>) -> Result<ExitCode> {
    let run = Run::new(project, args);
    let kernels = Tested::kernels(args, asked);
    let checks = host_tests::checks(args, &kernels);
    host_tests::run(&run, &checks)?;
    let mut programs = None;
    if may_match_guest(args, &kernels) {
        match programs::guest_programs(project) {
            Ok(dir) => programs = Some(dir),
            Err(error) => run.fail("host/guest-programs", error)?,
        }
    }
    build_and_test(&run, programs.as_deref(), &kernels, &checks)?;
    let tally = run.tally();
    if tally.is_empty() {
        eprintln!("{}", nothing(project, args, asked));
    }
    print!("{}{}", tally.by_program(), tally.longest());
    println!("{}", tally.closing());
    Ok(if tally.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds one kernel after the other, while guests of those that are there run their tests. What need not be built comes
/// first, and of that the last kernel, whose tests take longest: the others fit in beside it.
fn build_and_test(
    run: &Run,
    programs: Option<&Path>,
    kernels: &[Tested],
    checks: &[Check],
) -> Result<()> {
    let room = &Room::of_this_machine();
    thread::scope(|scope| {
        let (built, to_run) = mpsc::channel();
        let builder = scope.spawn(move || -> Result<()> {
            // Of this thread, and of what it starts: guests are started by the other.
            let _ = rustix::process::nice(NICE);
            let is_built = |tested: &&Tested| {
                let built = kernel::built(run.project, tested.arch, &tested.origin);
                built.is_ok_and(|kernel| kernel.is_some())
            };
            let (there, to_build): (Vec<_>, Vec<_>) = kernels.iter().partition(is_built);
            let all = there.into_iter().rev().chain(to_build);
            for (tested, programs) in all.filter_map(|of| Some((of, programs?))) {
                match prepare(run, room, tested, programs) {
                    Ok(work) => work
                        .into_iter()
                        .for_each(|work| drop(built.send((tested, work)))),
                    Err(error) => run.fail(&format!("{}/run", tested.name()), error)?,
                }
            }
            drop(built);
            host_tests::run_late(run, checks)
        });
        let guests: Vec<_> = to_run
            .into_iter()
            .map(|(tested, work): (&Tested, Work)| {
                (tested, scope.spawn(move || work.run(run, room)))
            })
            .collect();
        join(builder)?;
        for (tested, guest) in guests {
            if let Err(error) = join(guest) {
                run.fail(&format!("{}/run", tested.name()), error)?;
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
    Selftests(Kernel, Box<kernel_tests::Chosen>),
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
fn prepare(run: &Run, room: &Room, tested: &Tested, own: &Path) -> Result<Vec<Work>> {
    let plan = guest_tests::plan(run.args, tested, own)?;
    let selftests = wants_selftests(run.args, tested);
    if plan.is_empty() && !selftests {
        return Ok(Vec::new());
    }
    let kernel = match kernel::build(run.project, tested.arch, &tested.origin) {
        Ok(kernel) => kernel,
        Err(error) => {
            run.fail(&format!("{}/build", tested.name()), error)?;
            return Ok(Vec::new());
        }
    };
    let plan = match tested.arch.foreign() {
        true => guest_tests::by_programs_in(plan, &programs::arm64_programs(run.project)?),
        false => plan,
    };
    let queue = Arc::new(guest_tests::Queue::new(run, room, kernel.clone(), plan)?);
    let guests = (0..queue.guests).map(|_| Work::Programs(queue.clone()));
    let mut work: Vec<_> = guests.collect();
    if selftests {
        match kernel_tests::prepare(run, &kernel, tested) {
            Ok(Some(chosen)) => work.push(Work::Selftests(kernel, Box::new(chosen))),
            Ok(None) => {}
            Err(error) => run.fail(&kernel_tests::all(tested), error)?,
        }
    }
    Ok(work)
}

/// Whether a kernel is needed, as far as one can tell before names are known.
fn may_match_guest(args: &Args, kernels: &[Tested]) -> bool {
    let mut kernels = kernels.iter();
    kernels.any(|tested| tested.may_match(args.pattern()))
}

fn wants_selftests(args: &Args, tested: &Tested) -> bool {
    tested.arch == Arch::X86_64 && !args.quick && kernel_tests::may_match(args.pattern(), tested)
}

/// Why no test has run.
fn nothing(project: &Project, args: &Args, asked: Option<&Origin>) -> String {
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
        _ if !exists(project, &all, asked).unwrap_or(false) => {
            format!("no test's name contains `{pattern}`")
        }
        (true, _) => left_out("--host"),
        (false, true) => left_out("--quick"),
    }
}

fn exists(project: &Project, args: &Args, asked: Option<&Origin>) -> Result<bool> {
    let kernels = Tested::kernels(args, asked);
    let checks = host_tests::checks(args, &kernels);
    if !checks.is_empty() || kernels.iter().any(|tested| wants_selftests(args, tested)) {
        return Ok(true);
    }
    if !may_match_guest(args, &kernels) {
        return Ok(false);
    }
    let programs = programs::guest_programs(project)?;
    for tested in &kernels {
        if !guest_tests::plan(args, tested, &programs)?.is_empty() {
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
            let said = nothing(&project, &args(true, only), None);
            assert!(said.starts_with("--quick leaves out"), "{said}");
        }
        let host = |only| Args {
            host: true,
            ..args(false, only)
        };
        let said = nothing(&project, &host("host/patches"), None);
        assert!(said.starts_with("--host leaves out"), "{said}");
        let said = nothing(&project, &args(true, "host/nonsense"), None);
        assert!(said.starts_with("no test's name"), "{said}");
        let any = |args: &Args| {
            let kernels = Tested::kernels(args, None);
            !host_tests::checks(args, &kernels).is_empty()
        };
        assert!(any(&args(false, "host/deb-kernel")));
        assert!(!any(&args(true, "host/deb-kernel")));
        assert!(any(&args(true, "host/deb")));
        assert!(any(&host("host/deb")));
        assert!(!any(&host("host/kernel")));
        assert!(Tested::kernels(&host("fork"), None).is_empty());
    }
}
