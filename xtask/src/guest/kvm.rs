//! Whether a machine can run on KVM, before it is tried and after.

use std::{
    env, fmt,
    fs::{self, File},
    time::Duration,
};

use super::console::begun;

/// Where it runs on KVM, it speaks within a second.
const SILENCE: Duration = Duration::from_secs(60);

/// /dev/kvm can be opened, but no machine runs on it, for this reason.
#[derive(Debug)]
pub struct NoKvm(pub String);

impl fmt::Display for NoKvm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "KVM does not work on this machine ({})", self.0)
    }
}

impl std::error::Error for NoKvm {}

/// Whether hardware virtualisation is offered to this user.
pub fn offered() -> bool {
    // There is a KVM that works without these, but not for an ordinary guest: it would crawl.
    let hardware = || fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| virtualizes(&text));
    env::var_os("SKSM_NO_KVM").is_none()
        && hardware()
        && File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

/// Whether a processor of this `/proc/cpuinfo` runs virtual machines by itself.
fn virtualizes(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// Why a machine that began like this cannot run on KVM. What QEMU complains of otherwise, it does when it emulates, too.
pub fn failure(log: &str, gone: bool, after: Duration) -> Option<String> {
    let line = |text: &str| log.lines().find(|line| line.to_lowercase().contains(text));
    // Then QEMU waits for a debugger.
    let stopped = line("kvm internal error").or_else(|| line("kvm run failed"));
    if stopped.is_some() || begun(log) {
        return stopped.map(str::to_owned);
    }
    match (gone, log.trim().is_empty()) {
        (true, true) => Some("QEMU ended without a word".into()),
        (true, false) => line("kvm").map(str::to_owned),
        (false, _) => (after > SILENCE)
            .then(|| format!("the kernel said nothing for {} s", SILENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_a_processor_that_virtualizes() {
        assert!(virtualizes("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(virtualizes("flags : svm\n"));
        assert!(!virtualizes(
            "model name : svm\nflags : fpu xsave\nvmx flags : ept\n"
        ));
    }

    #[test]
    fn only_what_is_kvms_fault_is_put_down_to_it() {
        let soon = Duration::from_secs(1);
        let fails = |log, gone, after| failure(log, gone, after).is_some();
        for log in [
            "",
            "qemu-system-x86_64: failed to initialize kvm: Permission denied\n",
            "qemu-system-x86_64: -accel kvm: Could not access KVM kernel module\n",
        ] {
            assert!(fails(log, true, soon), "{log}");
        }
        for log in [
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n",
            "[    0.000000] Linux version 6.12\nkvm-guest: PV spinlocks\nKernel panic\n",
        ] {
            assert!(!fails(log, true, soon), "{log}");
        }
        for log in [
            "KVM internal error. Suberror: 1\nemulation failure\n",
            "[    0.000000] Linux version 6.12\nKVM internal error. Suberror: 1\n",
        ] {
            assert!(fails(log, false, soon), "{log}");
        }
        assert!(!fails("", false, soon));
        assert!(fails("", false, SILENCE * 2));
        assert!(!fails("Linux version 6.12\n", false, SILENCE * 2));
    }
}
