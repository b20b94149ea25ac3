//! Whether this kernel merges: why not, or why nobody knows, and what to do about it.

use anyhow::Result;
use sksm::{Error, Support};

use crate::{exit, ksm};

const NO_SKSM: &str =
    "this kernel has no MADV_MERGE; boot a kernel with CONFIG_SKSM, as sksm doctor says";

/// Where a kernel is to be had that merges.
pub const KERNEL: &str = "in SKSM's sources `cargo xtask deb --kernel` makes packages of Debian's with it, \
    `cargo xtask patches --out DIR` patches for your own";

/// Fails where merging can only fail.
pub fn require() -> Result<()> {
    sksm::require().map_err(explained)
}

fn explained(error: Error) -> anyhow::Error {
    match error {
        Error::Unsupported {
            instead: Support::Ksm,
            ..
        } => exit::because(&error, &format!("{NO_SKSM}; or have {}", ksm::ADVICE)),
        _ => error.into(),
    }
}

/// Why there are no counters, neither of SKSM nor of KSM.
pub fn uncounted() -> anyhow::Error {
    match sksm::require() {
        Ok(()) => exit::with(
            exit::FAILED,
            "this kernel merges, but what it counts cannot be read: have sysfs mounted at /sys",
        ),
        Err(error) => error.into(),
    }
}

/// Why there are none of SKSM; those of KSM may be there.
pub fn why_no_sksm(ksm: bool) -> &'static str {
    match sksm::require() {
        Ok(()) => "what SKSM counts cannot be read in /sys/kernel/mm/sksm",
        Err(Error::Undecided { .. }) => {
            "whether this kernel has MADV_MERGE cannot be found out from here, see sksm doctor"
        }
        Err(_) if !ksm => {
            "the store only: this kernel merges nothing, it has neither MADV_MERGE nor KSM"
        }
        Err(_) => "KSM only: this kernel has no MADV_MERGE, it was built without CONFIG_SKSM",
    }
}

/// What to do to find out.
pub fn step_of_doubt(errno: i32) -> &'static str {
    match (Error::Undecided { errno }).is_transient() {
        false => {
            "find out whether this kernel merges: run sksm doctor outside the seccomp filter, or have sysfs mounted at /sys; \
             programs merge where the filter lets madvise with the advice 26 pass"
        }
        true => {
            "find out whether this kernel merges: run sksm doctor again, with memory and a descriptor free"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_has_a_reason_and_a_way_out() {
        for (errno, status, reason, step) in [
            (
                libc::EPERM,
                exit::DENIED,
                "seccomp",
                "outside the seccomp filter",
            ),
            (
                libc::ENOSYS,
                exit::DENIED,
                "seccomp",
                "outside the seccomp filter",
            ),
            (libc::EMFILE, exit::FAILED, "descriptor", "again"),
        ] {
            let error = explained(Error::Undecided { errno });
            assert_eq!(exit::status(&error), status);
            let text = format!("{error:#}");
            assert!(
                text.contains(reason) && text.contains("cannot be found out"),
                "{text}"
            );
            assert!(!text.contains("no MADV_MERGE"), "{text}");
            assert!(step_of_doubt(errno).contains(step));
        }
        let (instead, errno) = (Support::Ksm, libc::EINVAL);
        let text = format!("{:#}", explained(Error::Unsupported { instead, errno }));
        assert!(
            text.contains("no MADV_MERGE") && text.contains("sksm run --ksm"),
            "{text}"
        );
    }
}
