//! The verb `run`.

mod object;
mod program;

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use sksm::Error;

use self::program::Finding;
use crate::ksm;
use crate::merge::What;
use crate::{output, store};

#[derive(clap::Args)]
pub struct Args {
    /// What to merge: a list of text, data, heap, stack
    ///
    /// Before `main` text is finished, and data and heap are still to be written: they go with --after or --signal. `sksm merge`,
    /// `estimate` and `scan`, which look at programs that run already, take text,data,heap if nothing is said.
    #[arg(long, default_value = "text")]
    what: What,
    /// Merge again after this time: 500ms, 5s, 2m, 1h; programs that it forks each after their own
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    after: Option<u64>,
    /// Merge again at this signal: RTMIN+12 without a value; one that the program has no use for
    ///
    /// A real-time signal, counted from the first or the last (RTMAX-2), or as a number. USR1, USR2 and HUP are taken, too, but many
    /// programs give them a meaning of their own once they run: OpenJDK crashes at USR2 from outside, Node opens its debugger at USR1.
    #[arg(long, value_name = "SIGNAL", num_args = 0..=1, default_missing_value = "RTMIN+12", value_parser = signal)]
    signal: Option<i32>,
    /// Share text that differs from its file by the store, on any kernel; nothing is merged
    ///
    /// What the program and its libraries have patched by the time it starts is then in memory once for all processes of this user that
    /// have patched it alike.
    #[arg(long, conflicts_with_all = ["what", "after", "signal"])]
    store: bool,
    /// Try nothing out: the seccomp filter that is in force lets merging pass
    ///
    /// Otherwise a child of the program tries it before the program does, as a filter might kill for it.
    #[arg(long)]
    seccomp_allowed: bool,
    /// Have the kernel's scanner, KSM, merge all of the program's memory, and of all that it starts; not SKSM
    ///
    /// For kernels that have no SKSM, from Linux 6.7. The scanner must run, and takes processor time for as long as it does.
    #[arg(long, conflicts_with_all = ["what", "after", "signal", "store", "seccomp_allowed", "verbose"])]
    ksm: bool,
    /// Tell by the exit status whether KSM was asked for before this program was started
    #[arg(long, hide = true, exclusive = true)]
    ksm_asked: bool,
    /// Say on standard error what was done
    #[arg(long, short)]
    verbose: bool,
    /// Say nothing about a program that will not be merged
    #[arg(long, short, conflicts_with = "verbose")]
    quiet: bool,
    /// The program and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "ksm_asked",
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.ksm_asked {
        return Ok(ExitCode::from(u8::from(!ksm::asked())));
    }
    if args.ksm {
        return with_ksm(&args);
    }
    let object = object::find()?;
    // The loader takes both for the end of a path, and has no way to quote them.
    if object
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| b" :".contains(byte))
    {
        bail!(
            "{}: a path with a space or a colon in it cannot be preloaded; \
             move it, or have SKSM_PRELOAD name a link to it",
            object.display()
        );
    }
    let preload = preload(object.into(), env::var_os("LD_PRELOAD"));
    let (program, rest) = args
        .command
        .split_first()
        .context("there is no program to run")?;
    let found = program::look(program).ok();
    if !args.quiet {
        let found = found.as_ref();
        let finding = found.and_then(|(path, finding)| Some((path.as_path(), finding.as_ref()?)));
        for note in notes(finding, &args) {
            output::note(&note);
        }
    }
    let mut command = Command::new(program);
    command.args(rest).env("LD_PRELOAD", preload);
    if args.store {
        command.env("SKSM_STORE", "1").env_remove("SKSM");
    } else {
        command.env("SKSM", &args.what.list);
    }
    if let Some(after) = args.after {
        command.env("SKSM_AFTER", format!("{after}ms"));
    }
    if let Some(signal) = args.signal {
        command.env("SKSM_SIGNAL", signal.to_string());
    }
    if args.seccomp_allowed {
        command.env("SKSM_SECCOMP", "allowed");
    }
    if args.verbose {
        command.env("SKSM_VERBOSE", "1");
    }
    if let Some((_, Some(Finding::AddressSanitizer))) = found {
        command.env("ASAN_OPTIONS", asan_options(env::var_os("ASAN_OPTIONS")));
    }
    Ok(become_program(command, program))
}

impl Args {
    /// What is wrong with the command line, by its words: an option that there is not was taken for the program.
    pub fn mistake(&self, mut words: impl Iterator<Item = OsString>) -> Option<String> {
        let program = self.command.first()?;
        let separated = words.any(|word| word == "--") && words.next().as_ref() == Some(program);
        (program.as_bytes().starts_with(b"-") && !separated).then(|| {
            let option = program.to_string_lossy();
            format!("unexpected argument '{option}'; a program of that name comes after --")
        })
    }
}

/// Runs the program, whether KSM can be had or not, as without this option.
fn with_ksm(args: &Args) -> Result<ExitCode> {
    let (program, rest) = args
        .command
        .split_first()
        .context("there is no program to run")?;
    let told = match ksm::ask() {
        Ok(price) => price,
        Err(error) => format!("{error:#}; it runs unmerged"),
    };
    if !args.quiet {
        output::note(&told);
    }
    let mut command = Command::new(program);
    command.args(rest);
    Ok(become_program(command, program))
}

/// The object and what is preloaded anyway, but for other copies of the object: of an outer `sksm run`, or of another version.
fn preload(object: OsString, others: Option<OsString>) -> OsString {
    let others = others.unwrap_or_default();
    let others = others.as_bytes().split(|byte| b" :".contains(byte));
    let of_ours = |path: &[u8]| {
        let name = path.rsplit(|byte| *byte == b'/').next();
        name.is_some_and(|name| name.starts_with(b"libsksm_preload"))
    };
    let mut preload = object;
    for other in others.filter(|path| !path.is_empty() && !of_ours(path)) {
        preload.push(":");
        preload.push(OsStr::from_bytes(other));
    }
    preload
}

/// Only returns if that fails, with the status for it.
fn become_program(mut command: Command, program: &OsString) -> ExitCode {
    let error = command.exec();
    let found = error.kind() != std::io::ErrorKind::NotFound;
    let error =
        anyhow::Error::from(error).context(format!("cannot run {}", program.to_string_lossy()));
    output::error(&error);
    ExitCode::from(if found { 126 } else { 127 })
}

/// What a person is to know who expects a merge of this program.
fn notes(finding: Option<(&Path, &Finding)>, args: &Args) -> Vec<String> {
    let mut notes = Vec::new();
    let unshared = if args.store { "unshared" } else { "unmerged" };
    if let Some((path, finding)) = finding {
        let path = path.display();
        let reason = match finding {
            Finding::Static => {
                format!("{path} is statically linked: no object can be loaded into it")
            }
            Finding::OtherMachine { bits: 32 } if cfg!(target_pointer_width = "64") => {
                format!("{path} is a 32-bit program, which the 64-bit object cannot be loaded into")
            }
            Finding::OtherMachine { .. } => {
                format!("{path} is for another machine than the object")
            }
            Finding::MoreRights => format!(
                "{path} runs with other rights than yours (set-uid, set-gid or capabilities): \
                 no object is loaded into it"
            ),
            Finding::AddressSanitizer => String::new(),
        };
        if !reason.is_empty() {
            notes.push(format!("{reason}; it runs {unshared}"));
        }
    }
    if args.store {
        notes.extend(store::in_the_way().map(|reason| format!("{reason}; nothing is shared")));
    } else if let Some(reason) = unsupported(args.seccomp_allowed) {
        notes.push(format!("{reason}; nothing is merged"));
    }
    notes
}

/// Why nothing merges, whatever the program.
fn unsupported(seccomp_allowed: bool) -> Option<String> {
    let filtered = !seccomp_allowed
        && std::fs::read_to_string("/proc/thread-self/status")
            .is_ok_and(|status| !status.contains("\nSeccomp:\t0\n"));
    if !filtered {
        return match sksm::require() {
            Ok(()) => None,
            Err(error @ Error::Undecided { .. }) => Some(error.to_string()),
            Err(_) => Some("this kernel has no MADV_MERGE".into()),
        };
    }
    // SAFETY: this process has one thread. The child makes system calls, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let found = match sksm::require() {
            Ok(()) => 0,
            Err(Error::Undecided { errno }) => errno.min(i32::from(u8::MAX) - 1),
            Err(_) => u8::MAX.into(),
        };
        // SAFETY: takes a number.
        unsafe { libc::_exit(found) };
    }
    let mut status = 0;
    // SAFETY: writes the status, into ours.
    if child < 0 || unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Some("what the seccomp filter does cannot be tried".into());
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => None,
        (true, 255) => {
            Some("this kernel has no MADV_MERGE, or the seccomp filter refuses it".into())
        }
        (true, errno) => Some(Error::Undecided { errno }.to_string()),
        (false, _) => Some("the seccomp filter kills for it".into()),
    }
}

/// Has it start with an object loaded before it. What the user says comes last, and counts.
fn asan_options(own: Option<OsString>) -> OsString {
    let mut options = OsString::from("verify_asan_link_order=0");
    if let Some(own) = own.filter(|own| !own.is_empty()) {
        options.push(":");
        options.push(own);
    }
    options
}

/// As the preload object reads it, which ignores what it does not understand.
fn milliseconds(time: &str) -> Result<u64, &'static str> {
    let digits = time.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &time[digits.len()..] {
        "ms" => Some(1),
        "s" | "" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    (digits.parse::<u64>().ok())
        .filter(|_| plain)
        .and_then(|number| number.checked_mul(unit?))
        .ok_or("give a whole number of ms, s, m or h, as in 5s")
}

/// A real-time signal; or one that ends a program which does not expect it, and that the kernel sends for no reason of its own.
fn signal(name: &str) -> Result<i32, &'static str> {
    let short = name.strip_prefix("SIG").unwrap_or(name);
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = |digits: &str| digits.parse::<u8>().ok().map(i32::from);
    let plus = |digits| number(digits).map(|count| first + count);
    let minus = |digits| number(digits).map(|count| last - count);
    let signal = match short {
        "USR1" => Some(libc::SIGUSR1),
        "USR2" => Some(libc::SIGUSR2),
        "HUP" => Some(libc::SIGHUP),
        "RTMIN" => Some(first),
        "RTMAX" => Some(last),
        _ => (short.strip_prefix("RTMIN+").map(plus))
            .or_else(|| short.strip_prefix("RTMAX-").map(minus))
            .unwrap_or_else(|| number(short)),
    };
    let named = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP];
    signal
        .filter(|signal| named.contains(signal) || (first..=last).contains(signal))
        .ok_or("give a real-time signal: RTMIN+12, RTMAX-2, or its number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_copies_of_the_object_are_not_preloaded() {
        let with = |others: &str| preload("/own/libsksm_preload.so".into(), Some(others.into()));
        let own = "/own/libsksm_preload.so";
        assert_eq!(preload(own.into(), None), own);
        assert_eq!(with(""), own);
        assert_eq!(
            with("/lib/other.so"),
            "/own/libsksm_preload.so:/lib/other.so"
        );
        assert_eq!(
            with("/a/libsksm_preload-0123.so:/lib/one.so libtwo.so:libsksm_preload.so"),
            "/own/libsksm_preload.so:/lib/one.so:libtwo.so"
        );
    }

    #[test]
    fn times_are_read_or_refused() {
        for (text, time) in [
            ("5s", Some(5000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("7", Some(7000)),
            ("5x", None),
            ("", None),
            ("s", None),
            ("-5s", None),
            ("+5s", None),
            ("1.5s", None),
            ("5ss", None),
            ("99999999999999999999s", None),
            ("18446744073709551615m", None),
        ] {
            assert_eq!(milliseconds(text).ok(), time, "{text}");
        }
    }

    #[test]
    fn only_signals_that_the_object_takes() {
        assert_eq!(signal("USR2"), Ok(libc::SIGUSR2));
        assert_eq!(signal("SIGUSR1"), Ok(libc::SIGUSR1));
        assert_eq!(signal("12"), Ok(12));
        assert_eq!(signal("40"), Ok(40));
        assert_eq!(signal("RTMIN"), Ok(libc::SIGRTMIN()));
        assert_eq!(signal("SIGRTMIN+12"), Ok(libc::SIGRTMIN() + 12));
        assert_eq!(signal("RTMAX-2"), Ok(libc::SIGRTMAX() - 2));
        for bad in [
            "KILL", "9", "11", "0", "99", "", "x", "usr1", "RTMIN+99", "RTMIN-1", "RTMAX-99",
        ] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
