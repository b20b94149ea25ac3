//! The preload object, as it is packaged, in programs of the machine.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sksm::{Error, ProcessStatistics};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::program::beside;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::crew::Crew;
use crate::scratch::Scratch;

fn object() -> Result<PathBuf> {
    beside("libsksm_preload.so")
}

/// A program with the object loaded.
fn with_object(program: impl AsRef<Path>, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program.as_ref());
    command
        .args(arguments)
        .env("LD_PRELOAD", object()?)
        .env("SKSM", "text,data,heap");
    Ok(command)
}

/// What SKSM_VERBOSE lets it say, beside what the program says there.
fn said(command: &mut Command) -> Result<String> {
    let output = command.env("SKSM_VERBOSE", "1").output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

/// What is said until so many processes have merged after the time. They are to run until their standard input ends.
fn said_after(command: &mut Command, time: &str, processes: usize) -> Result<String> {
    const WORDS: &str = "after the time: ";
    let mut child = command
        .env("SKSM_VERBOSE", "1")
        .env("SKSM_AFTER", time)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no output")?);
    let mut said = String::new();
    while said.matches(WORDS).count() < processes {
        if lines.read_line(&mut said)? == 0 {
            bail!("{} after {said:?}", child.wait()?);
        }
    }
    drop(child.stdin.take());
    let status = child.wait()?;
    let merged = said.contains(&format!("{WORDS}merged "));
    ensure!(merged && status.success(), "{status} after {said}");
    Ok(said)
}

pub fn as_without_it(program: &str, arguments: &[&str]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
        // Of no use to the tool itself, so setup does not install it.
        ensure!(program == "node", "`cargo xtask setup` installs it");
        return skip("it is not on this machine");
    }
    let plain = Command::new(program).args(arguments).output()?;
    let merged = with_object(program, arguments)?
        .env("SKSM", "text,data,heap,stack")
        .output()?;
    ensure!(plain == merged, "{plain:?} became {merged:?}");
    let output = with_object(program, arguments)?
        .env("SKSM", "data,heap")
        .env("SKSM_VERBOSE", "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.contains("at start: merged ") && !said.contains("refused"),
        "{said}"
    );
    Ok(())
}

/// The small object without std, not what an ordinary build makes: it dirties two pages, one by relocations and one by
/// its own state, and brings no unwinder.
pub fn as_packaged() -> Result<()> {
    let output = with_object("cat", &["/proc/self/smaps"])?.output()?;
    let smaps = String::from_utf8(output.stdout)?;
    let (mut inside, mut mappings, mut anonymous) = (false, 0, 0);
    for line in smaps.lines() {
        if !line.starts_with(|first: char| first.is_ascii_uppercase()) {
            inside = line.contains("libsksm_preload");
            mappings += usize::from(inside);
        } else if let Some(size) = line.strip_prefix("Anonymous:").filter(|_| inside) {
            let kib = size.trim().strip_suffix(" kB").context("no size")?;
            anonymous += kib.trim().parse::<u64>()?;
        }
    }
    ensure!(mappings > 1, "not loaded: {smaps}");
    ensure!(anonymous == 8, "it dirties {anonymous} KiB");
    ensure!(!smaps.contains("libgcc_s"), "it needs another library");
    Ok(())
}

fn merged_bytes(pids: &[u32]) -> Result<u64, Error> {
    let bytes = pids.iter().map(|pid| Ok(ProcessStatistics::of(*pid)?.ksm));
    bytes.sum()
}

/// A real-time signal, as the guide has it.
const SIGNAL: &str = "RTMIN+12";

/// Sends the signal to each, and waits until they have merged a MiB more.
fn merge_at_signal(pids: &[u32]) -> Result<()> {
    let before = merged_bytes(pids)?;
    for pid in pids {
        // SAFETY: takes numbers only; processes of this test that wait for their input.
        ensure!(unsafe { libc::kill(*pid as i32, libc::SIGRTMIN() + 12) } == 0);
    }
    let deadline = deadline();
    loop {
        let after = merged_bytes(pids)?;
        // Each holds more than 1 MiB of strings that are equal, between pointers that differ.
        if after > before + (1 << 20) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{before} bytes merged before the signal, {after} after it"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What is built before main is merged at start, and what comes later when it is asked for.
pub fn merges() -> Result<()> {
    let script = "my @a = map { 'x' . $_ x 50 } 1 .. 20000; $| = 1; print \"ready\\n\"; <STDIN>";
    let command = || {
        let mut command = with_object("perl", &["-e", script])?;
        command.env("SKSM", "heap").env("SKSM_SIGNAL", SIGNAL);
        Ok::<_, anyhow::Error>(command)
    };
    let crew = Crew::start([command()?, command()?])?;
    merge_at_signal(&crew.pids().collect::<Vec<_>>())
}

/// In no merge domain nothing merges, which is no error of any call: it is said all the same.
pub fn no_domain() -> Result<()> {
    let passed_over = || said(&mut with_object("true", &[])?);
    let with = passed_over()?;
    ensure!(!with.contains("passed over"), "{with}");
    SKSM.write("domain", "none")?;
    let without = passed_over()?;
    ensure!(without.contains("; passed over "), "{without}");
    ensure!(without.ends_with(" pages, see sksm doctor\n"), "{without}");
    Ok(())
}

/// Workers that a server has forked have its signal, and build their own tables.
pub fn forked_workers() -> Result<()> {
    let script = "$| = 1; for (1 .. 2) { next if fork; my @a = map { 'x' . $_ x 50 } 1 .. 20000; \
                  print \"$$\\n\"; <STDIN>; exit } <STDIN>; wait; wait";
    let mut server = with_object("perl", &["-e", script])?
        .env("SKSM", "heap")
        .env("SKSM_SIGNAL", SIGNAL)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("no output")?).lines();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let line = lines.next().context("a worker has ended")??;
        workers.push(line.parse::<u32>()?);
    }
    merge_at_signal(&workers)?;
    drop(server.stdin.take());
    ensure!(server.wait()?.success());
    Ok(())
}

pub fn min_pages() -> Result<()> {
    let merged = |min: &str| {
        let said = said(with_object("cat", &["/dev/null"])?.env("SKSM_MIN_PAGES", min))?;
        let figures = said
            .trim()
            .split_once(": merged ")
            .context("nothing merged")?;
        let (mappings, kib) = (figures.1)
            .split_once(" mappings, ")
            .with_context(|| said.clone())?;
        let kib = kib.strip_suffix(" KiB").with_context(|| said.clone())?;
        Ok::<_, anyhow::Error>((mappings.parse::<u64>()?, kib.parse::<u64>()?))
    };
    let (all, few, none) = (merged("1")?, merged("32")?, merged("100000000")?);
    ensure!(none == (0, 0), "merged in spite of it: {none:?}");
    ensure!(0 < few.0 && few.0 < all.0, "{few:?} of {all:?}");
    ensure!(few.1 >= few.0 * 32 * 4, "smaller ones among {few:?}");
    // Those of one page alone are some KiB more.
    ensure!(few.1 < all.1, "{few:?} of {all:?}");
    Ok(())
}

/// Without a thread, with a filter that lets it pass and without one.
pub fn after() -> Result<()> {
    let said = said_after(&mut with_object("cat", &[])?, "10ms", 1)?;
    ensure!(said.matches('\n').count() == 2, "{said}");
    said_after(
        refusing(&mut with_object("cat", &[])?, &[], libc::EPERM),
        "10ms",
        1,
    )?;
    let output = with_object("grep", &["Threads:", "/proc/self/status"])?
        .env("SKSM_AFTER", "100s")
        .output()?;
    let threads = String::from_utf8(output.stdout)?;
    ensure!(threads == "Threads:\t1\n", "{threads}");
    Ok(())
}

/// Who the program becomes changes nothing about the time.
pub fn after_setuid() -> Result<()> {
    let script = "use POSIX; for (1 .. 5) { setuid(0); select undef, undef, undef, 0.1 } \
                  print STDERR \"changed\\n\"; <STDIN>";
    let said = said_after(&mut with_object("perl", &["-e", script])?, "4s", 1)?;
    ensure!(said.contains("changed\n"), "too early: {said}");
    Ok(())
}

/// Workers and daemons merge, each after its own time.
pub fn after_fork() -> Result<()> {
    let script = "use POSIX; sub stay { sysread STDIN, my $byte, 1; exit } stay if fork; \
                  POSIX::setsid(); for (1, 2) { next if fork; stay } stay";
    let mut command = with_object("perl", &["-e", script])?;
    let said = said_after(&mut command, "500ms", 4)?;
    let merged = said.matches(" after the time: merged ").count();
    ensure!(merged == 4, "{merged} processes: {said}");
    Ok(())
}

/// It says so where it gets no timer, and the program runs on.
pub fn after_no_timer() -> Result<()> {
    let mut command = with_object("cat", &["/dev/null"])?;
    command
        .env("SKSM_AFTER", "10ms")
        .env("SKSM_SECCOMP", "allowed");
    let calls = [libc::SYS_timer_create];
    let said = said(refusing(&mut command, &calls, libc::EAGAIN))?;
    let reason = format!("there is no timer for it: error number {}\n", libc::EAGAIN);
    ensure!(said.ends_with(&reason), "{said}");
    Ok(())
}

/// Puts a filter over the program that refuses these calls.
fn refusing<'a>(command: &'a mut Command, calls: &[i64], errno: i32) -> &'a mut Command {
    let word = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // The number of the call.
    let mut filter = vec![word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for call in calls {
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        filter.push(word(equal, 0, 1, *call as u32));
        let refuse = libc::SECCOMP_RET_ERRNO | errno as u32;
        filter.push(word(libc::BPF_RET | libc::BPF_K, 0, 0, refuse));
    }
    let allow = libc::SECCOMP_RET_ALLOW;
    filter.push(word(libc::BPF_RET | libc::BPF_K, 0, 0, allow));
    let set = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: takes numbers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        let mode = libc::SECCOMP_MODE_FILTER;
        // SAFETY: takes a number, and a program that is valid for the call.
        check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) })?;
        Ok(())
    };
    // SAFETY: makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(set) }
}

/// In a program that runs with another user's rights the object is loaded only if an administrator has put it where the loader
/// trusts it; then it says and does nothing all the same.
pub fn set_uid() -> Result<()> {
    let scratch = Scratch::new("set-uid")?;
    let name = trust(&scratch, &object()?)?;
    let program = scratch.file("cat");
    std::fs::copy("/usr/bin/cat", &program)?;
    chown(&program, Some(1002), Some(1002))?;
    let run = |mode| {
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode))?;
        let output = Command::new(&program)
            .args(["/proc/self/maps", "/proc/self/status"])
            .uid(1001)
            .gid(1001)
            .env("LD_PRELOAD", &name)
            .env("SKSM_VERBOSE", "1")
            .output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{output:?}");
        ensure!(printed.contains(&name), "it is not loaded: {output:?}");
        let trusted = printed.contains("\nUid:\t1001\t1002\t");
        Ok((trusted, String::from_utf8(output.stderr)?))
    };
    let (trusted, said) = run(0o755)?;
    ensure!(
        !trusted && said.contains("at start: merged "),
        "as its own user it says {said:?}"
    );
    let (trusted, said) = run(0o6755)?;
    ensure!(trusted, "the program did not run as user 1002");
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

/// Puts a file, for this process and its children, over one in a directory that the loader trusts, and tells its name there.
fn trust(scratch: &Scratch, object: &Path) -> Result<String> {
    // Some library of libc's that no program of the test needs.
    const NAME: &str = "libanl.so.1";
    let place = format!("/usr/lib/{}-linux-gnu/{NAME}", std::env::consts::ARCH);
    let copy = scratch.file(NAME);
    std::fs::copy(object, &copy)?;
    // What the loader asks of it.
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755))?;
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o755))?;
    // SAFETY: takes a number.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).context("unshare")?;
    mount(
        Path::new("/"),
        Path::new("/"),
        libc::MS_REC | libc::MS_PRIVATE,
    )?;
    mount(&copy, Path::new(&place), libc::MS_BIND)?;
    Ok(NAME.into())
}

fn mount(from: &Path, to: &Path, flags: libc::c_ulong) -> Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (source, target) = (text(from)?, text(to)?);
    let none = std::ptr::null();
    // SAFETY: the paths live over the call; these kinds of mount take no type and no data.
    let done = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), none, flags, none.cast()) };
    check(done).with_context(|| format!("mount over {}", to.display()))?;
    Ok(())
}
