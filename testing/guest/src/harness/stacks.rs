//! Where processes are that do not come to an end.

use std::fmt::Write;
use std::fs;

use procfs::process::all_processes;

/// For each thread of a group's processes its name, its state, its system call with arguments, and its stack in the kernel. One
/// that runs has a call named `running` and an old stack, if any.
pub fn of_group(group: i32) -> String {
    let mut text = String::new();
    // What ends meanwhile is none of them.
    for process in all_processes().into_iter().flatten().flatten() {
        let of_it = process.stat().is_ok_and(|stat| stat.pgrp == group);
        for task in process
            .tasks()
            .into_iter()
            .flatten()
            .flatten()
            .filter(|_| of_it)
        {
            let Ok(stat) = task.stat() else { continue };
            let file = |name| {
                let path = format!("/proc/{}/task/{}/{name}", task.pid, task.tid);
                fs::read_to_string(path).unwrap_or_default()
            };
            let (call, stack) = (file("syscall"), file("stack"));
            let _ = write!(
                text,
                "{} {} {}: {call}{stack}",
                task.tid, stat.comm, stat.state
            );
        }
    }
    text
}
