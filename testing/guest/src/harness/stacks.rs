//! Where processes are that do not come to an end.

use std::fmt::Write;
use std::fs;

use procfs::process::all_processes;

/// For each process of a group its name, its state, its system call with arguments, and its stack in the kernel.
pub fn of_group(group: i32) -> String {
    let mut text = String::new();
    for process in all_processes().into_iter().flatten().flatten() {
        // One that ends meanwhile is none of them.
        let Ok(stat) = process.stat() else { continue };
        if stat.pgrp != group {
            continue;
        }
        let file =
            |name| fs::read_to_string(format!("/proc/{}/{name}", stat.pid)).unwrap_or_default();
        let _ = writeln!(
            text,
            "{} {} {} in {}{}",
            stat.pid,
            stat.comm,
            stat.state,
            file("syscall"),
            file("stack")
        );
    }
    text
}
