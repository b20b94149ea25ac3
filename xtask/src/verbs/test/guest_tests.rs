//! Runs the test programs in guests of a kernel and counts what they report.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    args::Args,
    passes::{Ingredients, Pass},
    results::Run,
    room::{Room, Share},
    tested::Tested,
};
use crate::{
    guest::{Boot, Cmd, End, Guest, Limit, Output, programs},
    kernel::{Arch, Kernel},
    terminal::progress::Step,
    verbs::shared::report::{self, Verdict},
};

/// What runs, the program that does it, and the files beside it that it uses; in this order.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("sksm-selftest", "sksm-selftest", &[]),
    ("sksm-abi", "sksm-abi", &[]),
    ("sksm-library", "sksm-library", PACKAGED),
    ("sksm-command", "sksm-command", PACKAGED),
    ("sksm-python", "sksm-python", &[programs::PYTHON]),
    ("sksm-smoke", "sksm-smoke", MEASURING),
    ("sksm-random", "sksm-random", &[]),
    ("sksm-replay", "sksm-replay", &[]),
    ("stress", "sksm-random", &["sksm"]),
    ("sksm-programs", "sksm-programs", &["libsksm_merge_all.so"]),
    (OFF, "sksm-off", &[]),
];
const PACKAGED: &[&str] = &[
    "sksm",
    "libsksm.so",
    "libsksm_preload.so",
    "examples/table",
    "sksm-static-keys",
    "sksm-vm-memory",
    "sksm-vmm",
];
const MEASURING: &[&str] = &["sksm-bench", "sksm-demo", "libsksm_preload_demo.so"];

/// This one has a kernel of its own, which is told at boot to merge nothing.
const OFF: &str = "sksm-off";
const OFF_PARAMETER: &str = "sksm=off";

/// Into how many shares the tests of this one are cut where they take longest: a guest each.
const LONG: &str = "sksm-abi";
const SHARES: usize = 2;

/// One program and how it is to run.
pub struct Item {
    name: &'static str,
    /// Which share of its tests, as in `1/2`.
    share: Option<String>,
    program: PathBuf,
    beside: &'static [&'static str],
    args: Vec<String>,
    /// Only some of its tests.
    narrowed: bool,
    /// How long no test of it need have ended.
    silence: Duration,
    /// For the kernel that it runs in.
    parameter: Option<&'static str>,
}

/// What has to run in this kernel for the tests that are asked for.
pub fn plan(args: &Args, tested: &Tested, programs: &Path) -> Result<Vec<Item>> {
    let arch = tested.arch;
    let mut items = Vec::new();
    if !tested.may_match(args.pattern()) {
        return Ok(items);
    }
    for &(name, program, beside) in PROGRAMS {
        // What runs in user space is the same there, and real programs take long where each access is checked. They are this
        // machine's programs, too, which another processor does not run.
        if matches!(name, "sksm-library" | "sksm-command" | "sksm-python")
            && (arch.foreign() || matches!(arch, Arch::Debug | Arch::Kcsan | Arch::Fuzz))
        {
            continue;
        }
        // Where each of them takes longest there is nothing more to see.
        if name == "sksm-programs" && arch != Arch::X86_64 {
            continue;
        }
        // The fuzzer's kernel has the same checkers, and there they have run: here they would take ten minutes more.
        if name == "sksm-replay" && arch == Arch::Debug && !args.all {
            continue;
        }
        // That the programs that measure run at all shows in any kernel, and here soonest.
        if name == "sksm-smoke" && arch != Arch::Um {
            continue;
        }
        let program = programs.join(program);
        let tests = list(&program)?;
        let select = |place| select(args.pattern(), &format!("{place}/{name}"), &tests);
        let Some(only) = tested.names().into_iter().find_map(select) else {
            continue;
        };
        let mut words = Vec::new();
        let narrowed = only.is_some();
        if let Some(only) = only {
            words.extend(["--only".to_owned(), only.to_owned()]);
        }
        // Also of those that share the processors with other guests, and with what else the machine does.
        let mut seconds = match arch {
            Arch::Um | Arch::X86_64 | Arch::Arm64 | Arch::Without | Arch::Unpatched => 1200,
            Arch::Debug | Arch::Kcsan | Arch::Fuzz => 2000,
        };
        let random = match name {
            "sksm-random" => Some(args.random_seconds(arch)),
            "stress" => match args.stress_seconds(arch) {
                None => continue,
                seconds => {
                    words.push("--stress".to_owned());
                    seconds
                }
            },
            _ => None,
        };
        if let Some(random) = random {
            words.extend(["--seconds".to_owned(), random.to_string()]);
            if let Some(seed) = args.seed {
                words.extend(["--seed".to_owned(), seed.to_string()]);
            }
            // It goes on until every process has checked its memory.
            seconds = 1200 + 4 * random;
        }
        let slow = matches!(arch, Arch::Debug | Arch::Kcsan | Arch::Fuzz);
        let shares = match name == LONG && slow && !narrowed {
            true => (1..=SHARES)
                .map(|share| Some(format!("{share}/{SHARES}")))
                .collect(),
            false => vec![None],
        };
        for share in shares {
            let mut args = words.clone();
            if let Some(share) = &share {
                args.extend(["--share".to_owned(), share.clone()]);
            }
            items.push(Item {
                name,
                share,
                program: program.clone(),
                beside,
                args,
                narrowed,
                silence: Duration::from_secs(seconds),
                parameter: (name == OFF).then_some(OFF_PARAMETER),
            });
        }
    }
    Ok(items)
}

/// The same by the programs of another processor, which have the same tests: this machine could only ask its own.
pub fn by_programs_in(plan: Vec<Item>, programs: &Path) -> Vec<Item> {
    let there = |item: Item| {
        let name = item.program.file_name().unwrap_or_default();
        let program = programs.join(name);
        Item { program, ..item }
    };
    plan.into_iter().map(there).collect()
}

/// The program's tests; none if it cannot tell.
fn list(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("--list")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

/// Whether a program has tests that match, and what to narrow it down to.
fn select<'a>(pattern: &'a str, program: &str, tests: &[String]) -> Option<Option<&'a str>> {
    if format!("{program}/").contains(pattern) {
        return Some(None);
    }
    if !tests
        .iter()
        .any(|test| format!("{program}/{test}").contains(pattern))
    {
        return None;
    }
    // The program knows only its own part of the name.
    let own = pattern
        .match_indices('/')
        .find(|&(at, _)| program.ends_with(&pattern[..at]))
        .map_or(pattern, |(at, _)| &pattern[at + 1..]);
    Some(Some(own))
}

/// What is to run in one kernel, for all guests of it that work side by side.
pub struct Queue {
    kernel: Kernel,
    due: Mutex<VecDeque<Due>>,
    /// Guests that there is room for.
    pub guests: usize,
}

/// An item, and what it depends on.
struct Due {
    item: Item,
    made_of: String,
}

impl Queue {
    /// Without what has passed and cannot have changed.
    pub fn new(run: &Run, room: &Room, kernel: Kernel, plan: Vec<Item>) -> Result<Self> {
        let all = Ingredients::of_kernel(&kernel.image)?;
        let mut due = VecDeque::new();
        for item in plan {
            let made_of = item.made_of(&all)?;
            if !run.passed_before(&item.full_name(&kernel.name()), &made_of) {
                due.push_back(Due { item, made_of });
            }
        }
        let guests = room.holds(Share::of(&Boot::new(run.project, &kernel)));
        Ok(Self {
            kernel,
            guests: guests.min(due.len()),
            due: Mutex::new(due),
        })
    }

    fn due(&self) -> MutexGuard<'_, VecDeque<Due>> {
        self.due.lock().expect("nobody panics with it")
    }

    /// The next one, preferably for a kernel with this parameter.
    fn next(&self, parameter: Option<Option<&str>>) -> Option<Due> {
        let mut due = self.due();
        let same = due
            .iter()
            .position(|due| Some(due.item.parameter) == parameter);
        due.remove(same.unwrap_or(0))
    }
}

impl Item {
    /// In the kernel of that name; what its tests' names begin with.
    fn tests(&self, kernel: &str) -> String {
        format!("{kernel}/{}", self.name)
    }

    /// The same, but for the share.
    fn full_name(&self, kernel: &str) -> String {
        let share = self
            .share
            .iter()
            .map(|share| format!("-{}", share.replace('/', "of")));
        self.tests(kernel) + &share.collect::<String>()
    }

    /// What it depends on, beyond what all in that kernel do.
    fn made_of(&self, all: &Ingredients) -> Result<String> {
        let mut made_of = all.clone();
        made_of.text("parameter", self.parameter.unwrap_or_default());
        made_of.text("arguments", &self.args.join(" "));
        made_of.file("program", &self.program)?;
        for name in self.beside {
            let path = self.program.with_file_name(name);
            match path.is_dir() {
                true => made_of.directory(name, &path)?,
                false => made_of.file(name, &path)?,
            }
        }
        Ok(made_of.as_str().to_owned())
    }
}

/// Does what is due, in a guest of its own. A kernel that dies takes its program with it; the next program gets a new one.
pub fn work(run: &Run, room: &Room, queue: &Queue) -> Result<()> {
    let kernel = &queue.kernel;
    let name = kernel.name();
    let _place = room.enter(Share::of(&Boot::new(run.project, kernel)))?;
    let mut session: Option<Session> = None;
    while let Some(due) = queue.next(session.as_ref().map(|session| session.parameter)) {
        let parameter = due.item.parameter;
        let mut running = match session.take() {
            Some(session) if session.parameter == parameter => session,
            other => {
                if let Some(session) = other {
                    session.end(run, &name)?;
                }
                let boot = Boot::new(run.project, kernel);
                match boot.parameter(parameter.unwrap_or_default()).start() {
                    Ok(guest) => Session {
                        guest,
                        parameter,
                        done: Vec::new(),
                    },
                    Err(error) => {
                        // The others would not fare better.
                        queue.due().clear();
                        return run.fail(&format!("{name}/boot"), error);
                    }
                }
            }
        };
        running.run(run, &name, due)?;
        if running.guest.alive() {
            session = Some(running);
        } else {
            running.end(run, &name)?;
        }
    }
    match session {
        Some(session) => session.end(run, &name),
        None => Ok(()),
    }
}

/// A guest, and what has run in it.
struct Session {
    guest: Guest,
    parameter: Option<&'static str>,
    /// By name, what was good as far as it shows by itself.
    done: Vec<(String, Pass)>,
}

impl Session {
    fn run(&mut self, run: &Run, kernel: &str, due: Due) -> Result<()> {
        let name = due.item.full_name(kernel);
        run.passes.begin(&name, &due.made_of)?;
        let ends = run_program(run, kernel, &due.item, &mut self.guest)?;
        if ends.failed > 0 {
            run.passes.forget(&name)?;
        } else if !due.item.narrowed {
            let pass = Pass::today(&due.made_of, ends.passed, ends.skipped);
            self.done.push((name, pass));
        }
        Ok(())
    }

    /// Powers off and judges the console; only then has anything passed.
    fn end(self, run: &Run, kernel: &str) -> Result<()> {
        let name = format!("{kernel}/console");
        let step = Step::begin(&name);
        let (splats, console) = self.guest.finish()?;
        let verdict = if splats.is_empty() {
            Verdict::Passed(String::new())
        } else {
            Verdict::Failed(splats.join("\n"))
        };
        run.record(&step, &name, verdict, Some(&console));
        for (name, pass) in self.done {
            match splats.is_empty() {
                true => run.passes.keep(&name, &pass)?,
                false => run.passes.forget(&name)?,
            }
        }
        Ok(())
    }
}

/// How the tests of a program ended.
#[derive(Default)]
struct Ends {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Ends {
    fn count(&mut self, verdict: &Verdict) {
        *match verdict {
            Verdict::Passed(_) => &mut self.passed,
            Verdict::Failed(_) => &mut self.failed,
            Verdict::Skipped(_) => &mut self.skipped,
        } += 1;
    }
}

fn run_program(run: &Run, kernel: &str, item: &Item, guest: &mut Guest) -> Result<Ends> {
    let name = item.tests(kernel);
    let silence = item.silence;
    let full_name = item.full_name(kernel);
    let step = Step::begin(&full_name);
    let log_path = run
        .project
        .log(&format!("test-{}", full_name.replace('/', "-")))?;
    let log = RefCell::new(
        File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?,
    );
    let mut argv = vec![item.program.to_string_lossy().into_owned()];
    argv.extend(item.args.iter().cloned());
    let write = |line: &str| {
        // A full disk shows elsewhere.
        let _ = writeln!(log.borrow_mut(), "{line}");
    };
    write(&format!("$ {}", argv.join(" ")));
    let mut ends = Ends::default();
    let mut failures = 0;
    let mut last = None;
    let (end, _) = guest.exec(
        Cmd::new(&argv)
            .stdout(Output::Lines(Box::new(|line| {
                write(line);
                if let Some((test, verdict)) = report::parse(line) {
                    failures += usize::from(matches!(verdict, Verdict::Failed(_)));
                    step.detail(&test);
                    let name = format!("{name}/{test}");
                    ends.count(&run.record(&step, &name, verdict, Some(&log_path)));
                    last = Some(test);
                }
            })))
            .stderr(Output::Lines(Box::new(|line| {
                write(line);
                step.tick();
            }))),
        Some(Limit::Silence(silence)),
    )?;
    let after = match &last {
        Some(test) => format!(" after {test}"),
        None => " before any test had ended".into(),
    };
    let problem = match end {
        End::Exited(0) if last.is_none() => Some("reported no test".into()),
        End::Exited(0) => None,
        // Then the program's own lines say what failed.
        End::Exited(1) if failures > 0 => None,
        End::Exited(status) => Some(format!("ended with status {status}{after}")),
        End::TimedOut => Some(format!(
            "said nothing for {} s, stopped{after}",
            silence.as_secs()
        )),
        End::Panicked => Some(format!("the kernel panicked{after}")),
        End::Died => Some(format!("the kernel went away{after}")),
    };
    if let Some(problem) = problem {
        ends.count(&run.record(&step, &name, Verdict::Failed(problem), Some(&log_path)));
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_programs_and_tests() {
        let tests: Vec<String> = ["fork/merge", "hole"].map(String::from).into();
        let program = "um/sksm-abi";
        for whole in [
            "",
            "um",
            "um/",
            "sksm-abi",
            "um/sksm-abi",
            "um/sksm-abi/",
            "abi/",
        ] {
            assert_eq!(select(whole, program, &tests), Some(None), "{whole}");
        }
        assert_eq!(select("hole", program, &tests), Some(Some("hole")));
        assert_eq!(select("sksm-abi/fork", program, &tests), Some(Some("fork")));
        assert_eq!(select("fork/me", program, &tests), Some(Some("fork/me")));
        assert_eq!(
            select("um/sksm-abi/fork/m", program, &tests),
            Some(Some("fork/m"))
        );
        assert_eq!(select("abi/fork/m", program, &tests), Some(Some("fork/m")));
        assert_eq!(select("um/sksm-abi/h", program, &tests), Some(Some("h")));
        assert_eq!(select("debug/sksm-abi/h", program, &tests), None);
        assert_eq!(select("sksm-random", program, &tests), None);
        assert_eq!(select("hole", "um/sksm-other", &[]), None);
    }
}
