//! Which tests cannot run where. A skip that is not expected here fails the run: a setting that gets lost, or a device that is
//! not there any more, would take its tests away without a word. One that is expected may run all the same.

use crate::kernel::Base;

/// What the names of tests begin with, and why they cannot run.
type Reasons = &'static [(&'static str, &'static str)];

/// By the first part of the test's name: the host, or the kernel, of whatever base.
const EXPECTED: &[(&[&str], Reasons)] = &[
    (&["host"], HOST),
    (&["um"], UM),
    (&["x86_64", "debug", "kcsan"], X86_64),
    (&["arm64"], ARM64),
    (&["um", "x86_64", "debug", "kcsan"], NO_TAGS),
    (&["um", "x86_64", "arm64", "kcsan"], NO_FAULTS),
    (&["debug"], SLOW),
];

const HOST: Reasons = &[
    ("clippy-static-keys", "needs Rust 1.87"),
    ("deny", "not everybody has cargo-deny"),
    (
        "advisories",
        "not everybody has cargo-deny, and a way to the database of advisories",
    ),
    ("lintian", "not everybody has lintian"),
    ("litmus", "not everybody has herd7"),
    (
        "man-pages",
        "not everybody has the manual that the patches are for",
    ),
    ("mypy", "not everybody has mypy"),
    (
        "msrv",
        "not everybody has the oldest Rust beside another one",
    ),
    (
        "semver",
        "not everybody has cargo-semver-checks, and there may be no release yet",
    ),
    ("prometheus", "not everybody has promtool"),
    ("packages", "cargo is older than 1.90"),
    ("units", "systemd-analyze is not installed"),
    (
        "test/elsewhere/",
        "not everybody has the libraries of other systems",
    ),
    ("test/", "a part of another test, which says why"),
];

const UM: Reasons = &[
    (
        "sksm-abi/advice/batches-are-emptied-once",
        "is built without tracing",
    ),
    (
        "sksm-abi/asleep/beside-a-page-that-could-be-read-at-large",
        "has no huge pages",
    ),
    (
        "sksm-abi/asleep/come-back-merged-from-zswap",
        "is built without it",
    ),
    (
        "sksm-abi/children/all-found-when-page-moves",
        MEMORY_FAILURE,
    ),
    ("sksm-abi/damon/", "is built without DAMON"),
    ("sksm-abi/debugger/hardware-breakpoint", "has none"),
    ("sksm-abi/debugger/watchpoint", "has none"),
    (
        "sksm-abi/file/zeros-survive-cache-invalidation",
        "has no file systems in user space",
    ),
    ("sksm-abi/hmm/", "has no memory of devices"),
    ("sksm-abi/huge/", "has no huge pages"),
    ("sksm-abi/file/zeros-survive-collapse", "has no huge pages"),
    (
        "sksm-abi/idle/accesses",
        "does not see accesses to pages that are present",
    ),
    ("sksm-abi/bystanders/", "has one CPU"),
    ("sksm-abi/order/cpus-begin-far-apart", "has one CPU"),
    (
        "sksm-abi/ksm/pages-of-two-are-read-at-large",
        "has no huge pages",
    ),
    ("sksm-abi/kvm/", "has no virtual machines"),
    ("sksm-abi/numa/", "has one node"),
    ("sksm-abi/offline/", "cannot take memory away"),
    ("sksm-abi/pkeys/", "has no protection keys"),
    ("sksm-abi/poison/", MEMORY_FAILURE),
    ("sksm-abi/rmap/all-mappings-migrate", MEMORY_FAILURE),
    ("sksm-abi/seen/numa_maps", "has one node"),
    ("sksm-abi/soft-dirty/", "has no such bits"),
    ("sksm-abi/trace/", "is built without tracing"),
    ("sksm-abi/uffd/accesses", TRAPS),
    ("sksm-abi/uffd/handler", "has no bits for write protection"),
    ("sksm-abi/uffd/pinned-huge", "has no huge pages"),
    ("sksm-abi/uffd/write", "has no bits for write protection"),
    ("sksm-command/scan/memory-that-hangs", TRAPS),
    ("sksm-abi/unmerge/huge-pages", "has no huge pages"),
    ("sksm-abi/uprobe/", "has no probes"),
    ("sksm-abi/vma/hugetlb", "has no huge pages"),
    (
        "sksm-abi/vma/memfd-secret",
        "cannot unmap pages from the kernel",
    ),
    ("sksm-abi/vma/physical-memory", "has no memory of devices"),
    ("sksm-command/estimate/huge-pages", "has no huge pages"),
    ("sksm-command/scan/huge-pages", "has no huge pages"),
    ("sksm-command/estimate/nodes", "has one node"),
    (
        "sksm-command/guide/",
        "gives every process the same addresses",
    ),
    ("sksm-command/guide/node-", LANGUAGE),
    ("sksm-command/guide/java-", LANGUAGE),
    ("sksm-command/guide/go-", LANGUAGE),
    ("sksm-library/static-keys", "needs Rust 1.87"),
    ("sksm-library/tracker/", "has no bits for write protection"),
    ("sksm-python/celery", SERVER),
    ("sksm-python/uwsgi", SERVER),
];
const LANGUAGE: &str = "not everybody has Node.js, Java or Go";
const STRESSING: &str = "`cargo xtask stress --programs` installs it";
const SERVER: &str = "not everybody has this server";
const TRAPS: &str = "Linux traps reads since 7.3, and not in User-Mode Linux";
const MEMORY_FAILURE: &str = "has no handling of memory failure";

const X86_64: Reasons = &[
    (
        "sksm-command/scan/thousands",
        "so many processes take too long under emulation",
    ),
    (
        "sksm-command/guide/",
        "the figures are of one version of Python",
    ),
    ("sksm-command/guide/node-", LANGUAGE),
    ("sksm-command/guide/java-", LANGUAGE),
    ("sksm-command/guide/go-", LANGUAGE),
    ("sksm-programs/stress-ng/", STRESSING),
    ("sksm-programs/trinity", STRESSING),
    // Those two are the host's processor where QEMU runs on KVM.
    (
        "sksm-abi/kvm/",
        "the processor need not have virtualisation",
    ),
    (
        "sksm-abi/pkeys/",
        "the processor need not have protection keys",
    ),
    ("sksm-library/static-keys", "needs Rust 1.87"),
    ("sksm-python/celery", SERVER),
    ("sksm-python/uwsgi", SERVER),
    (
        "selftests/",
        "compared with what the unpatched kernel skips",
    ),
];

const ARM64: Reasons = &[
    (
        "sksm-abi/offline/",
        "only memory that was added can be taken away",
    ),
    ("sksm-abi/soft-dirty/", "has no such bits"),
    (
        "sksm-abi/pkeys/",
        "QEMU has no protection keys of this processor",
    ),
];

const NO_TAGS: Reasons = &[("sksm-abi/mte/", "only arm64 has memory tags")];

const NO_FAULTS: Reasons = &[("sksm-abi/faults/", "the debug kernel injects them")];

const SLOW: Reasons = &[(
    "sksm-abi/pressure/whole-machine",
    "too slow; the stress swaps there too",
)];

/// What a base alone cannot have.
const OF_BASE: &[(Base, Reasons)] = &[(
    Base::Linux6_12,
    &[
        ("sksm-abi/uffd/accesses", TRAPS),
        ("sksm-command/scan/memory-that-hangs", TRAPS),
    ],
)];

/// Whether a test may be skipped.
pub fn expected(name: &str) -> bool {
    let (place, test) = name.split_once('/').unwrap_or((name, ""));
    let (place, base) = Base::of_name(place);
    let everywhere = EXPECTED
        .iter()
        .filter(|(places, _)| places.contains(&place));
    let here = OF_BASE
        .iter()
        .filter(|&&(of, _)| of == base && place != "host");
    everywhere
        .map(|(_, reasons)| *reasons)
        .chain(here.map(|(_, reasons)| *reasons))
        .flatten()
        .any(|(begin, _)| test.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_may_be_skipped() {
        assert!(expected("um/sksm-abi/faults/one-by-one"));
        assert!(!expected("debug/sksm-abi/faults/one-by-one"));
        assert!(!expected("um/sksm-abi/sharing/limit"));
        assert!(!expected("um"));
    }

    #[test]
    fn bases_differ_where_they_must_and_are_alike_elsewhere() {
        let trapped = "sksm-abi/uffd/accesses-stay-trapped";
        for (place, may) in [
            ("um", true),
            ("um-7.3", true),
            ("x86_64", true),
            ("debug", true),
            ("x86_64-7.3", false),
            ("debug-7.3", false),
        ] {
            assert_eq!(expected(&format!("{place}/{trapped}")), may, "{place}");
        }
        assert!(expected("x86_64-7.3/sksm-abi/faults/one-by-one"));
        assert!(!expected("debug-7.3/sksm-abi/faults/one-by-one"));
        assert!(expected("host/litmus-7.3"));
    }
}
