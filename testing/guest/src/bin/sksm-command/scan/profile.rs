//! The scanner under the seccomp profile that its pod has.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::harness::program::beside;
use sksm_guest::memory::map::Map;
use sksm_guest::syscall::check;

use super::{PAGES, filled, holders, pids, shared_by_two, with_pids};
use crate::command::run;

const PROFILE: &str = include_str!("../../../../../../packaging/kubernetes/seccomp-sksm-scan.json");
/// Where C programs have the numbers from.
const HEADERS: [&str; 2] = [
    "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "/usr/include/asm/unistd_64.h",
];

/// The filter that a runtime makes of it: what is not named is an error.
fn filter() -> Result<Vec<libc::sock_filter>> {
    let header = HEADERS
        .iter()
        .find_map(|path| fs::read_to_string(path).ok());
    let header = header.context("no asm/unistd_64.h: apt install linux-libc-dev")?;
    let number = |name: &str| -> Result<u32> {
        let start = format!("#define __NR_{name} ");
        let line = header.lines().find_map(|line| line.strip_prefix(&start));
        Ok(line
            .with_context(|| format!("no call {name}"))?
            .trim()
            .parse()?)
    };
    let word = |code: u32, jf, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let mut filter = vec![word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    let profile: Value = serde_json::from_str(PROFILE)?;
    ensure!(profile["defaultErrnoRet"] == libc::EPERM, "{profile}");
    for rule in profile["syscalls"].as_array().context("no calls")? {
        for name in rule["names"].as_array().context("no names")? {
            let number = number(name.as_str().context("no name")?)?;
            filter.push(word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number));
            filter.push(word(
                libc::BPF_RET | libc::BPF_K,
                0,
                libc::SECCOMP_RET_ALLOW,
            ));
        }
    }
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    filter.push(word(libc::BPF_RET | libc::BPF_K, 0, refuse));
    Ok(filter)
}

pub fn of_its_pod() -> Result<()> {
    let filter = filter()?;
    let under = move || -> io::Result<()> {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: takes numbers, and a program that is valid for the call.
        unsafe {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            let mode = libc::SECCOMP_MODE_FILTER;
            check(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program))?;
        }
        Ok(())
    };
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let children = holders(&map, 2, |_, map| filled(map))?;
    let state = std::env::temp_dir().join(format!("sksm-{}-state.json", std::process::id()));
    let words = pids(&children);
    let mut command = Command::new(beside("sksm")?);
    command.args([
        "scan", "--once", "--json", "--stable", "300ms", "--cpu", "100%",
    ]);
    command.arg("--state").arg(&state);
    command.args(with_pids(&["--what", "heap"], &words));
    // SAFETY: makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(under) };
    let output = run(&mut command)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(shared_by_two(&children, &map)? == PAGES, "{output:?}");
    ensure!(state.exists(), "no state was written: {output:?}");
    Ok(())
}
