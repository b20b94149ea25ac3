//! What an emulated processor executes in the kernel, instruction by instruction: QEMU's log of it, while that is asked for.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Where the kernel's code is on x86_64 without address randomisation.
const KERNEL: &str = "0xffffffff80000000..0xffffffffffffffff";
const PROMPT: &[u8] = b"(qemu) ";
/// For an answer of QEMU's monitor, on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);
/// Of the log, in bytes: many times what a measurement writes. A kernel that never comes to its end would fill the disk.
const LONGEST: u64 = 4 << 30;

#[derive(Clone)]
pub struct Trace {
    monitor: PathBuf,
    log: PathBuf,
}

impl Trace {
    /// In a directory with a short path, which outlives the guest.
    pub fn new(dir: &Path) -> Self {
        Self {
            monitor: dir.join("monitor"),
            log: dir.join("log"),
        }
    }

    pub(super) fn prepare(&self, qemu: &mut Command) {
        let monitor = format!("unix:{},server=on,wait=off", self.monitor.display());
        qemu.args(["-monitor", &monitor, "-dfilter", KERNEL, "-D"]);
        qemu.arg(&self.log);
        let limit = Rlimit {
            current: Some(LONGEST),
            maximum: Some(LONGEST),
        };
        // SAFETY: one system call, which is allowed between fork and exec.
        unsafe {
            qemu.pre_exec(move || Ok(setrlimit(Resource::Fsize, limit)?));
        }
    }

    /// From now on.
    pub fn begin(&self) -> Result<()> {
        // The second is what newer versions call the first. Each takes no notice of the other's.
        self.ask(&["singlestep on", "one-insn-per-tb on", "log exec,nochain"])
    }

    /// Until now.
    pub fn end(&self) -> Result<()> {
        self.ask(&["log none"])
    }

    fn ask(&self, commands: &[&str]) -> Result<()> {
        let path = self.monitor.display();
        let mut monitor = UnixStream::connect(&self.monitor)
            .with_context(|| format!("cannot reach QEMU's monitor at {path}"))?;
        monitor.set_read_timeout(Some(PATIENCE))?;
        prompt(&mut monitor)?;
        for command in commands {
            writeln!(monitor, "{command}")?;
            prompt(&mut monitor)?;
        }
        Ok(())
    }

    /// The address of each instruction.
    pub fn addresses(&self) -> Result<impl Iterator<Item = Result<u64>>> {
        let log = File::open(&self.log).context("QEMU wrote no log: was it built without that?")?;
        let lines = BufReader::new(log).lines();
        Ok(lines.filter_map(|line| match line {
            Ok(line) => address(&line).map(Ok),
            Err(error) => Some(Err(error.into())),
        }))
    }
}

/// Reads up to the next prompt.
fn prompt(monitor: &mut impl Read) -> Result<()> {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(PROMPT) {
        if monitor
            .read(&mut byte)
            .context("QEMU's monitor says nothing")?
            == 0
        {
            bail!("QEMU has ended");
        }
        said.push(byte[0]);
    }
    Ok(())
}

/// As in `Trace 0: 0x7f13e6e00100 [0000000000000000/ffffffff812c53c5/10d0c2b0/ff020201]`: the second in brackets.
fn address(line: &str) -> Option<u64> {
    let (_, inner) = line.strip_prefix("Trace ")?.split_once('[')?;
    u64::from_str_radix(inner.split('/').nth(1)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_an_address() {
        let line = "Trace 0: 0x7f13e6e00100 [0000000000000000/ffffffff812c53c5/10d0c2b0/ff020201] ";
        assert_eq!(address(line), Some(0xffff_ffff_812c_53c5));
        assert_eq!(
            address("Stopped execution of TB chain before 0x7f [ffffffff]"),
            None
        );
    }

    #[test]
    fn the_monitor_is_heard_out() {
        let mut said: &[u8] = b"QEMU 7.2.22 monitor\r\n(qemu) log none\r\n(qemu) ";
        prompt(&mut said).unwrap();
        prompt(&mut said).unwrap();
        assert!(prompt(&mut said).is_err());
    }
}
