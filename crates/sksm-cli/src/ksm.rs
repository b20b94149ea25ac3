//! What a kernel without SKSM has instead: KSM, a scanner, for programs that are started for it.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How programs get it, and at which price.
pub const ADVICE: &str = "KSM merge programs that are started for it, by sksm run --ksm or MemoryKSM=yes in a systemd unit; \
    it needs Linux 6.7 and 1 in /sys/kernel/mm/ksm/run, takes time of a processor for ever, \
    finds pages late, and takes all of the program's memory, secrets too";

/// `PR_SET_MEMORY_MERGE` and `PR_GET_MEMORY_MERGE` of `<linux/prctl.h>`, since Linux 6.4.
const SET: i32 = 67;
const GET: i32 = 68;

/// Whether this process was started for KSM.
pub fn asked() -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(GET, 0, 0, 0, 0) == 1 }
}

/// Has KSM take all memory of this process, and of the program that it becomes; says what that costs, and what it needs.
///
/// Where it fails, KSM has no more than before.
pub fn ask() -> Result<String> {
    if let Some(why) = in_the_way()? {
        bail!("{why}");
    }
    set().context("this kernel does not let KSM have this program")?;
    Ok(match Scanner::now() {
        Some(scanner) => scanner.told(),
        None => {
            "KSM may merge all memory of this program, but its scanner cannot be seen here".into()
        }
    })
}

/// Why no program can be started for KSM here, if so; fails where that cannot be tried.
///
/// A child tries it: the first kernels that have it forget it at the start of another program, and this process is left as it is.
pub fn in_the_way() -> Result<Option<String>> {
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(GET, 0, 0, 0, 0) } < 0 {
        let error = io::Error::last_os_error();
        return Ok(Some(format!(
            "this kernel does not let KSM have a whole program, which needs Linux 6.4 with CONFIG_KSM ({error})"
        )));
    }
    let mut child = Command::new("/proc/self/exe");
    child.args(["run", "--ksm-asked"]).stdin(Stdio::null());
    // SAFETY: makes one system call, and allocates nothing.
    unsafe { child.pre_exec(set) };
    let kept = child
        .status()
        .context("cannot try whether a program stays with KSM")?;
    let forgotten = "this kernel forgets it when a program starts: that needs Linux 6.7";
    Ok((!kept.success()).then(|| forgotten.into()))
}

fn set() -> io::Result<()> {
    // SAFETY: takes numbers only.
    match unsafe { libc::prctl(SET, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How ksmd is set.
struct Scanner {
    running: bool,
    pages: u64,
    milliseconds: u64,
}

impl Scanner {
    fn now() -> Option<Self> {
        let get = |name| {
            let text = fs::read_to_string(format!("/sys/kernel/mm/ksm/{name}")).ok()?;
            text.trim().parse::<u64>().ok()
        };
        Some(Self {
            running: get("run")? == 1,
            pages: get("pages_to_scan")?,
            milliseconds: get("sleep_millisecs")?,
        })
    }

    fn told(&self) -> String {
        let Self {
            pages,
            milliseconds,
            ..
        } = self;
        match self.running {
            true => format!(
                "KSM merges all memory of this program, secrets too, when its scanner comes by: {pages} pages every {milliseconds} ms, \
                 for as long as it runs"
            ),
            false => "KSM may merge all memory of this program, secrets too, but its scanner does not run: \
                 echo 1 > /sys/kernel/mm/ksm/run"
                .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_price_is_told_and_what_is_missing() {
        let mut scanner = Scanner {
            running: true,
            pages: 100,
            milliseconds: 20,
        };
        assert!(scanner.told().contains("100 pages every 20 ms"));
        scanner.running = false;
        assert!(scanner.told().contains("echo 1 > "));
    }
}
