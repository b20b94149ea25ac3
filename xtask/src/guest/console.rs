//! A kernel's console log: a new one for each boot, and what it says went wrong.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sksm_records::splats::complains;

use crate::kernel::Arch;

/// Console logs that are kept.
const LOGS_KEPT: usize = 40;

/// The kernel has races that its authors accept, also deep below what the engine calls and in interrupts that come while it runs.
/// The engine's count: those where it is the function that a stack begins with, or has called it and that is no atomic access, so
/// that it should have seen to it. All its symbols have its name in them.
const DATA_RACE: &str = "BUG: KCSAN:";
const ENGINE: &str = "sksm";
/// Stands above each of the two stacks, with what follows for an access that is atomic.
const ACCESS: &str = " bytes by ";
const ATOMIC: &str = " (marked) ";
/// A folio's lock is in the word of its node and zone, which all of mm reads plainly.
const LOCKS: &str = "sksm_folio_trylock";
/// Begins and ends a report of the race detector.
const RULE: &str = "========";

/// The scheduler's deadline server, on a CPU that the host kept waiting, forwards a timer that another CPU has started meanwhile, and
/// is warned: where, and who must be in the stack.
const FORWARDS: &str = " hrtimer_forward+";
const DEADLINE_SERVER: &str = "dl_task_timer+";
/// So many lines of a warning have the top of its stack.
const WARNING: usize = 40;

/// A new console log; old ones are removed.
pub fn create(dir: &Path, arch: Arch) -> Result<(PathBuf, File)> {
    let mut logs: Vec<(std::time::SystemTime, PathBuf)> = fs::read_dir(dir)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            name.to_str()?.starts_with("console-").then_some(())?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    logs.sort();
    for (_, old) in logs.iter().rev().skip(LOGS_KEPT) {
        let _ = fs::remove_file(old);
    }
    for boot in 0.. {
        let path = dir.join(format!("console-{arch}-{}-{boot}.log", std::process::id()));
        // What is there is of another boot, perhaps of another process that had this number.
        match File::options().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot create {}", path.display()));
            }
        }
    }
    unreachable!("there are enough numbers")
}

/// The complaints in a console log, in order, at most `limit` of them.
pub fn splats(log: &str, limit: usize) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    (0..lines.len())
        .filter(|at| is_splat(&lines[*at..]))
        .map(|at| lines[at].trim_end().to_owned())
        .take(limit)
        .collect()
}

/// The first complaint and what the kernel said next, at most `limit` lines: registers and stack, as a rule.
pub fn first_splat(log: &str, limit: usize) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let first = (0..lines.len()).find(|at| is_splat(&lines[*at..]));
    let report = first.map_or(&[][..], |at| &lines[at..]);
    let lines = report.iter().take(limit);
    lines.map(|line| line.trim_end().to_owned()).collect()
}

/// Whether a complaint begins with the first of these lines.
fn is_splat(lines: &[&str]) -> bool {
    let line = lines[0];
    complains(line)
        && (!line.contains(DATA_RACE) || engine_races(lines))
        && !(line.contains(FORWARDS) && by_deadline_server(lines))
}

fn by_deadline_server(warning: &[&str]) -> bool {
    let mut lines = warning.iter().take(WARNING);
    lines.any(|line| line.contains(DEADLINE_SERVER))
}

/// Whether the report that begins with these lines is of the engine. A process may have its name too, so only functions count.
fn engine_races(report: &[&str]) -> bool {
    let end = report[1..].iter().position(|line| line.contains(RULE));
    let report = &report[..end.map_or(report.len(), |end| end + 1)];
    (0..report.len())
        .filter(|at| report[*at].contains(ACCESS))
        .any(|at| {
            let atomic = report[at].contains(ATOMIC);
            let mut stack = report[at + 1..].iter().map(|line| function(line));
            let accesses = stack.next().unwrap_or_default();
            let calls = stack.next().unwrap_or_default();
            accesses.contains(ENGINE) && !(atomic && accesses == LOCKS)
                || calls.contains(ENGINE) && !atomic
        })
}

/// The function of a line of a stack, as in ` do_madvise+0x1/0x2`.
fn function(line: &str) -> &str {
    let place = line.split_once("+0x").map_or("", |(place, _)| place);
    place.split_whitespace().next_back().unwrap_or_default()
}

/// Whether the kernel has said anything; before it the emulator may have.
pub fn begun(log: &str) -> bool {
    log.contains("Linux version")
}

pub fn panicked(log: &str) -> bool {
    log.contains("Kernel panic")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn each_boot_has_a_console_log_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (first, mut file) = create(dir.path(), Arch::Um).unwrap();
        writeln!(file, "BUG: of another boot").unwrap();
        let (second, _) = create(dir.path(), Arch::Um).unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(second).unwrap(), b"");
        for _ in 0..2 * LOGS_KEPT {
            create(dir.path(), Arch::Um).unwrap();
        }
        assert!(fs::read_dir(dir.path()).unwrap().count() <= LOGS_KEPT + 1);
    }

    #[test]
    fn complaints_are_found_in_order() {
        let log = "\
[    0.1] kasan: KernelAddressSanitizer initialized (generic)
[    2.0] BUG: KASAN: slab-use-after-free in sksm_merge+0x1/0x2
[    2.1] Call Trace:
[    3.0] WARNING: possible circular locking dependency detected
[    4.0] INFO: task sksm-random:77 blocked for more than 120 seconds.
[    5.0] rcu: INFO: rcu_preempt self-detected stall on CPU
[    6.0] Kernel panic - not syncing: Fatal exception
";
        let found = splats(log, 10);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[0].contains("KASAN"));
        assert!(found[4].contains("panic"));
        assert!(panicked(log));
        assert_eq!(splats(log, 2).len(), 2);
        assert_eq!(
            first_splat(log, 2),
            log.lines().skip(1).take(2).collect::<Vec<_>>()
        );
    }

    #[test]
    fn an_ordinary_boot_is_clean() {
        let log = "\
[    0.000000] Linux version 6.12.0
[    0.1] Warning: tempdir /var/tmp is not on tmpfs
[    0.2] random: crng init done
[    0.3] traps: prog[7] general protection fault ip:1 sp:2 error:0
[    0.4] sksm-init: ready
[    1.0] reboot: Power down
";
        assert_eq!(splats(log, 10), Vec::<String>::new());
        assert!(!panicked(log));
    }

    #[test]
    fn the_deadline_server_alone_may_forward_a_timer_that_runs() {
        let by = |function: &str| {
            format!(
                "[    0.9] WARNING: CPU: 1 PID: 3394 at kernel/time/hrtimer.c:1056 hrtimer_forward+0xc8/0x150\n\
                 [    0.9] Call Trace:\n[    0.9]  {function}+0x47a/0x680\n"
            )
        };
        assert_eq!(splats(&by("dl_task_timer"), 10).len(), 0);
        assert_eq!(splats(&by("another_timer"), 10).len(), 1);
    }

    /// One report of the race detector.
    fn race(title: &str, first: &[&str], second: &[&str]) -> String {
        let stack = |functions: &[&str]| -> String {
            (functions
                .iter()
                .map(|name| format!("[    5.2]  {name}+0x4b/0x90\n")))
            .collect()
        };
        format!(
            "[    5.0] {rule}\n[    5.0] BUG: KCSAN: data-race in {title}\n[    5.1]\n\
             [    5.1] write to 0xffff888000000000 of 8 bytes by task 70 on cpu 1:\n{}[    5.3]\n\
             [    5.3] read to 0xffff888000000000 of 8 bytes by task 71 on cpu 0:\n{}[    5.4]\n\
             [    5.4] Reported by Kernel Concurrency Sanitizer on:\n\
             [    5.4] CPU: 0 UID: 0 PID: 71 Comm: sksm-random Not tainted 6.12.0 #1\n[    5.5] {rule}\n",
            stack(first),
            stack(second),
            rule = "=".repeat(66),
        )
    }

    #[test]
    fn the_engines_data_races_count() {
        let of_others = race("a / b", &["a", "do_wp_page"], &["b", "ksm_scan_thread"]);
        let first = race(
            "folio_add_lru / sksm_folio_dirty",
            &["folio_add_lru"],
            &["sksm_folio_dirty"],
        );
        let marked = |report: &str| report.replace("write to", "read-write (marked) to");
        let lock = race("sksm_folio_trylock / b", &["sksm_folio_trylock"], &["b"]);
        let table = race(
            "remove / worker",
            &["remove", "sksm_index_remove"],
            &["worker"],
        );
        let store = race("sksm_store / b", &["sksm_store"], &["b"]);
        let in_rust = race(
            "a / b",
            &["a", "c"],
            &[
                "b",
                "_RNvMs_NtCs1_4sksm4nodeNtB4_4Node7publish",
                "do_madvise",
            ],
        );
        let below = race(
            "__lru_add_drain_all / folios_put_refs",
            &[
                "__lru_add_drain_all",
                "lru_add_drain_all",
                "_RN4sksm9merge_pmd",
            ],
            &["folios_put_refs", "do_wp_page"],
        );
        assert_eq!(splats(&of_others, 10), Vec::<String>::new());
        assert_eq!(splats(&below, 10), Vec::<String>::new());
        assert_eq!(splats(&first, 10).len(), 1);
        for (report, atomic) in [(lock, 0), (table, 0), (store, 1)] {
            assert_eq!(splats(&report, 10).len(), 1);
            assert_eq!(splats(&marked(&report), 10).len(), atomic);
        }
        assert_eq!(splats(&in_rust, 10).len(), 1);
        // What follows a report is not of it.
        assert_eq!(splats(&(of_others + &in_rust), 10).len(), 1);
    }

    #[test]
    fn a_failed_mount_is_found() {
        assert_eq!(
            splats("[ 0.2] sksm-init: mount -t 9p failed\n", 10).len(),
            1
        );
    }
}
