//! Runs the test programs in a kernel and counts what they report.

use std::{
    cell::RefCell,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    guest::{Boot, Cmd, End, Guest, Output},
    interrupt,
    kernel::{Arch, Kernel},
    progress::Step,
    report::{self, Verdict},
    test::{Args, Run},
};

/// What runs, and the program that does it, in this order.
const PROGRAMS: &[(&str, &str)] = &[
    ("sksm-selftest", "sksm-selftest"),
    ("sksm-abi", "sksm-abi"),
    ("sksm-library", "sksm-library"),
    ("sksm-smoke", "sksm-smoke"),
    ("sksm-random", "sksm-random"),
    ("stress", "sksm-random"),
];

/// One program and how it is to run.
pub struct Item {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    timeout: Duration,
}

/// Whether any test of this kernel may have a name with `pattern` in it, before names are known.
pub fn may_match(pattern: &str, arch: Arch) -> bool {
    !pattern.starts_with("host/")
        && Arch::ALL
            .iter()
            .filter(|&&other| other != arch)
            .all(|other| !pattern.starts_with(&format!("{other}/")))
}

/// What has to run in this kernel for the tests that are asked for.
pub fn plan(args: &Args, arch: Arch, programs: &Path) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    if !may_match(args.pattern(), arch) {
        return Ok(items);
    }
    for &(name, program) in PROGRAMS {
        // What runs in user space is the same there, and real programs take long where each access is checked.
        if name == "sksm-library" && matches!(arch, Arch::Debug | Arch::Kcsan) {
            continue;
        }
        // That the programs that measure run at all shows in any kernel, and here soonest.
        if name == "sksm-smoke" && arch != Arch::Um {
            continue;
        }
        let program = programs.join(program);
        let tests = list(&program)?;
        let Some(only) = select(args.pattern(), &format!("{arch}/{name}"), &tests) else {
            continue;
        };
        let mut words = Vec::new();
        if let Some(only) = only {
            words.extend(["--only".to_owned(), only.to_owned()]);
        }
        let mut seconds = match arch {
            Arch::Um | Arch::X86_64 | Arch::Without | Arch::Unpatched => 1800,
            Arch::Debug | Arch::Kcsan => 3600,
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
            if let Some(seed) = args.seed() {
                words.extend(["--seed".to_owned(), seed.to_string()]);
            }
            // It goes on until every process has checked its memory.
            seconds = 600 + 2 * random;
        }
        items.push(Item {
            name,
            program,
            args: words,
            timeout: Duration::from_secs(seconds),
        });
    }
    Ok(items)
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

/// Boots the kernel, runs the programs in turn, and judges the console. A kernel that dies takes
/// its program with it; the next program gets a new one.
pub fn run(run: &mut Run, kernel: &Kernel, plan: &[Item]) -> Result<()> {
    let mut guest = None;
    for item in plan {
        let mut running = match guest.take() {
            Some(guest) => guest,
            None => match Boot::new(run.project, kernel).start() {
                Ok(guest) => guest,
                Err(error) => {
                    interrupt::check()?;
                    let step = Step::begin("boot");
                    let verdict = Verdict::Failed(format!("{error:#}"));
                    run.record(&step, &format!("{}/boot", kernel.arch), verdict, None);
                    return Ok(());
                }
            },
        };
        run_program(run, kernel.arch, item, &mut running)?;
        if running.alive() {
            guest = Some(running);
        } else {
            judge_console(run, kernel.arch, running)?;
        }
    }
    match guest {
        Some(guest) => judge_console(run, kernel.arch, guest),
        None => Ok(()),
    }
}

fn run_program(run: &mut Run, arch: Arch, item: &Item, guest: &mut Guest) -> Result<()> {
    let name = format!("{arch}/{}", item.name);
    let step = Step::begin(&name);
    let log_path = run
        .project
        .logs()?
        .join(format!("test-{arch}-{}.log", item.name));
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
    let mut reported = 0;
    let mut failures = 0;
    let mut last = None;
    let (end, _) = guest.exec(
        Cmd::new(&argv)
            .stdout(Output::Lines(Box::new(|line| {
                write(line);
                if let Some((test, verdict)) = report::parse(line) {
                    reported += 1;
                    failures += usize::from(matches!(verdict, Verdict::Failed(_)));
                    step.detail(&test);
                    run.record(&step, &format!("{name}/{test}"), verdict, Some(&log_path));
                    last = Some(test);
                }
            })))
            .stderr(Output::Lines(Box::new(|line| {
                write(line);
                step.tick();
            }))),
        Some(item.timeout),
    )?;
    let after = match last {
        Some(test) => format!(" after {test}"),
        None => " before any test had ended".into(),
    };
    let problem = match end {
        End::Exited(0) if reported == 0 => Some("reported no test".into()),
        End::Exited(0) => None,
        // Then the program's own lines say what failed.
        End::Exited(1) if failures > 0 => None,
        End::Exited(status) => Some(format!("ended with status {status}{after}")),
        End::TimedOut => Some(format!(
            "was not done after {} s, stopped{after}",
            item.timeout.as_secs()
        )),
        End::Panicked => Some(format!("the kernel panicked{after}")),
        End::Died => Some(format!("the kernel went away{after}")),
    };
    if let Some(problem) = problem {
        run.record(&step, &name, Verdict::Failed(problem), Some(&log_path));
    }
    Ok(())
}

fn judge_console(run: &mut Run, arch: Arch, guest: Guest) -> Result<()> {
    let step = Step::begin("console");
    let (splats, console) = guest.finish()?;
    let verdict = if splats.is_empty() {
        Verdict::Passed(String::new())
    } else {
        Verdict::Failed(splats.join("\n"))
    };
    run.record(&step, &format!("{arch}/console"), verdict, Some(&console));
    Ok(())
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

    #[test]
    fn a_kernel_is_left_out_when_another_is_named() {
        assert!(may_match("", Arch::Um));
        assert!(may_match("hole", Arch::Um));
        assert!(may_match("um/sksm", Arch::Um));
        assert!(!may_match("debug/sksm", Arch::Um));
        assert!(!may_match("host/fmt", Arch::Um));
    }
}
