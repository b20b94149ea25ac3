//! Virtual machines under QEMU, of which some are busy.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use procfs::process::Process;
use sksm_guest::harness::patience::deadline;

/// In MiB.
const MEMORY: &str = "192";

/// Machines, killed when they are dropped.
pub struct Machines(Vec<(Child, PathBuf)>);

impl Drop for Machines {
    fn drop(&mut self) {
        for (machine, _) in &mut self.0 {
            machine.kill().ok();
            machine.wait().ok();
        }
    }
}

impl Machines {
    /// The first one rewrites part of its memory, the second one boots again in the midst of it, the others are all but idle.
    pub fn boot(count: usize, qemu: &[String], kernel: &PathBuf, initrd: &PathBuf) -> Result<Self> {
        let mut machines = Machines(Vec::new());
        for number in 0..count {
            let role = match number {
                0 => "writes",
                1 => "boots-again",
                _ => "idle",
            };
            let log = PathBuf::from(format!("/tmp/machine-{number}"));
            let (program, words) = qemu.split_first().context("no QEMU")?;
            let machine = Command::new(program)
                .args(words)
                .args(["-nodefaults", "-no-user-config", "-display", "none"])
                .args(["-machine", "q35", "-cpu", "max", "-m", MEMORY])
                .args(["-accel", "tcg,thread=single"])
                .arg("-kernel")
                .arg(kernel)
                .arg("-initrd")
                .arg(initrd)
                .args(["-serial", &format!("file:{}", log.display())])
                .arg("-append")
                .arg(format!("console=ttyS0 quiet no_timer_check rcupdate.rcu_cpu_stall_suppress=1 rdinit=/init role={role}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            machines.0.push((machine, log));
        }
        Ok(machines)
    }

    pub fn until_ready(&mut self) -> Result<()> {
        let deadline = deadline();
        for (machine, log) in &mut self.0 {
            loop {
                let told = fs::read(&*log).unwrap_or_default();
                let told = String::from_utf8_lossy(&told);
                if told.contains("machine is ready") {
                    break;
                }
                if let Some(status) = machine.try_wait()? {
                    bail!("a machine ended: {status}: {told}");
                }
                ensure!(Instant::now() < deadline, "a machine does not boot: {told}");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Ok(())
    }

    /// Returns when none of them runs any more.
    pub fn stop(&self) -> Result<()> {
        self.signal(libc::SIGSTOP);
        let deadline = deadline();
        for (machine, _) in &self.0 {
            let machine = Process::new(machine.id() as i32)?;
            let stopped = || -> Result<bool> {
                let mut all = true;
                for task in machine.tasks()? {
                    all &= task?.stat()?.state == 'T';
                }
                Ok(all)
            };
            while !stopped()? {
                ensure!(Instant::now() < deadline, "a machine does not stop");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        for (machine, _) in &self.0 {
            // SAFETY: takes numbers only; our own child, not waited for yet.
            unsafe { libc::kill(machine.id() as i32, signal) };
        }
    }
}
