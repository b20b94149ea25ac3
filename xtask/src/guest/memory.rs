//! How much memory a guest takes, and whether the host has it.

use std::path::{Path, PathBuf};

/// What to say where a guest may need more memory than there is.
pub fn scarce(mem: &str, available: u64) -> Option<String> {
    let needed = bytes(mem)?;
    (needed > available).then(|| {
        format!(
            "the guest may take {} of memory, and {} are available: if it does, it gets slow or is killed",
            gib(needed),
            gib(available)
        )
    })
}

/// Bytes for people.
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

const SHM: &str = "/dev/shm";

/// Where UML's memory file goes: in memory if it fits and may be executed from, else on disk.
pub fn dir(mem: &str, cache: &Path) -> PathBuf {
    let fits = bytes(mem).is_some_and(|mem| free_shm().is_some_and(|free| free > mem));
    if fits { SHM.into() } else { cache.into() }
}

/// What is left of the memory that UML's memory files may take.
pub fn free_shm() -> Option<u64> {
    let shm = rustix::fs::statvfs(SHM).ok()?;
    let executable = !shm.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC);
    executable.then_some(shm.f_bavail * shm.f_frsize)
}

/// `512M` as a number.
pub fn bytes(size: &str) -> Option<u64> {
    let (digits, shift) = match size.as_bytes().last()? {
        b'K' | b'k' => (&size[..size.len() - 1], 10),
        b'M' | b'm' => (&size[..size.len() - 1], 20),
        b'G' | b'g' => (&size[..size.len() - 1], 30),
        _ => (size, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("512M"), Some(512 << 20));
        assert_eq!(bytes("4G"), Some(4 << 30));
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("G"), None);
        assert_eq!(bytes(""), None);
        assert_eq!(bytes("2T"), None);
        assert_eq!(bytes("99999999999G"), None);
    }

    #[test]
    fn scarce_memory_is_told() {
        assert_eq!(scarce("2G", 2 << 30), None);
        let text = scarce("3G", 1536 << 20).unwrap();
        assert!(
            text.contains("3.0 GiB") && text.contains("1.5 GiB"),
            "{text}"
        );
    }
}
