//! Which of the kernel's test programs run, and how: as `run_vmtests.sh` does it, but for sizes that suit a small
//! guest whose processor may be emulated.

use std::time::Duration;

use crate::kernel::Base;

use super::outcome::Dialect::{self, *};

pub struct Program {
    /// The program and its arguments; `AS_NOBODY` before it makes it an ordinary user's.
    pub command: &'static str,
    /// In 6.12.
    dialect: Dialect,
    /// Huge pages that it finds.
    pub huge_pages: u32,
    /// Whether it is too slow for every `cargo xtask test`.
    pub long: bool,
    /// A race within the program itself, which makes it fail now and then on any kernel: only failing every time counts.
    pub race: Option<&'static str>,
    /// Whether it is of this series.
    pub own: bool,
    /// The only base that has it, if not all have.
    only: Option<Base>,
}

/// How often a program with a race may run. On a busy machine one fails up to once in nine.
pub const TRIES: u32 = 6;

/// The first word of a command that is not root's.
const AS_NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups ";

impl Program {
    /// Those that a base has, in the order they run in.
    pub fn all(base: Base) -> impl Iterator<Item = &'static Program> + Clone {
        let there = move |program: &&Program| program.only.is_none_or(|only| only == base);
        PROGRAMS.iter().filter(there)
    }

    /// By 7.3 all of them had come to speak the same.
    pub fn dialect(&self, base: Base) -> Dialect {
        match base {
            Base::Linux6_12 => self.dialect,
            Base::Linux7_3 => Tap,
        }
    }

    /// The file to build.
    pub fn file(&self) -> &'static str {
        let command = self.command.strip_prefix(AS_NOBODY).unwrap_or(self.command);
        command
            .split(' ')
            .next()
            .unwrap_or_default()
            .trim_start_matches("./")
    }

    /// Only what hangs comes to it, also where the processor is emulated and the host busy.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(60 * if self.long { 40 } else { 10 })
    }

    /// As in `ksm_tests-M-p-10`: what reports call it.
    pub fn name(&self) -> String {
        let command = self.command.strip_prefix(AS_NOBODY).unwrap_or(self.command);
        let mut name = command
            .trim_start_matches("./")
            .replace(" -", "-")
            .replace(' ', "-");
        name.retain(|c| c != '\'');
        name
    }
}

const fn program(command: &'static str, dialect: Dialect) -> Program {
    Program {
        command,
        dialect,
        huge_pages: 0,
        long: false,
        race: None,
        own: false,
        only: None,
    }
}

impl Program {
    const fn huge(mut self, pages: u32) -> Self {
        self.huge_pages = pages;
        self
    }

    const fn long(mut self) -> Self {
        self.long = true;
        self
    }

    const fn own(mut self) -> Self {
        self.own = true;
        self
    }

    const fn only(mut self, base: Base) -> Self {
        self.only = Some(base);
        self
    }

    const fn race(mut self, race: &'static str) -> Self {
        self.race = Some(race);
        self
    }
}

const IN_USE: &str = "MADV_COLLAPSE may find a page in use twice, and is asked no third time";

/// In the order they run in: what takes seconds first. All that `./uffd-unit-tests` has is in it, in pieces.
const PROGRAMS: &[Program] = &[
    program("./merge_tests", Tap).own(),
    program("./ksm_tests -M -p 10", Tap),
    program("./ksm_tests -U", Tap)
        .race("the end of a scan that had passed its pages already counts as a new scan"),
    program("./ksm_tests -Z -p 10 -z 0", Tap),
    program("./ksm_tests -Z -p 10 -z 1", Tap),
    program("./ksm_tests -N -m 1", Tap)
        .race("its second page may come when a scan has passed it, and smart scan may then leave out the first"),
    program("./ksm_tests -N -m 0", Tap),
    program("./ksm_tests -P -s 20 -l 500", Tap),
    program("./ksm_tests -H -s 20 -l 500", Tap),
    program("./ksm_tests -D -s 20 -l 500", Tap),
    program("./ksm_tests -C -l 500", Tap),
    program("./cow", Tap).huge(32),
    program("./gup_longterm", Tap).huge(32),
    program("./gup_test -u -m 32", Tap),
    program("./gup_test -a -m 32", Tap),
    program("./gup_test -ct -F 0x1 0 19 0x1000", Tap),
    program("./madv_populate", Tap),
    program("./mremap_test", Tap),
    program("./mremap_dontunmap", Tap),
    program("./mlock-random-test", Tap),
    program("./mlock2-tests", Tap),
    program(
        "setpriv --reuid=65534 --regid=65534 --clear-groups ./on-fault-limit",
        Tap,
    ),
    program("./pagemap_ioctl", Tap).huge(32),
    program("./soft-dirty", Tap),
    program("./uffd-stress anon 20 4", Status),
    program("./uffd-stress shmem 20 4", Status),
    program("./uffd-stress shmem-private 20 4", Status),
    program("./uffd-stress hugetlb 64 4", Status).huge(128),
    program("./uffd-stress hugetlb-private 64 4", Status).huge(128),
    program("./mkdirty", Tap),
    program("./memfd_secret", Tap),
    program("./mrelease_test", Tap),
    program("./map_populate", Tap),
    program("./map_fixed_noreplace", Tap),
    program("./mdwe_test", Tap),
    program("./mseal_test", Tap),
    program("./seal_elf", Tap).only(Base::Linux6_12),
    program("./droppable", Tap),
    program("./pkey_sighandler_tests_64", Tap),
    program("./thuge-gen", Tap).huge(32),
    program("./hugepage-mmap", Tap)
        .huge(128)
        .only(Base::Linux6_12),
    program("./hugepage-shm", Status)
        .huge(128)
        .only(Base::Linux6_12),
    program("./map_hugetlb", Tap)
        .huge(128)
        .only(Base::Linux6_12),
    program("./hugepage-mremap", Tap)
        .huge(128)
        .only(Base::Linux6_12),
    program("./hugepage-vmemmap", Status)
        .huge(128)
        .only(Base::Linux6_12),
    program("./hugetlb-mmap", Tap)
        .huge(128)
        .only(Base::Linux7_3),
    program("./hugetlb-shm", Tap).huge(128).only(Base::Linux7_3),
    program("./hugetlb-mremap", Tap)
        .huge(128)
        .only(Base::Linux7_3),
    program("./guard-regions", Tap).only(Base::Linux7_3),
    program("./merge", Tap).only(Base::Linux7_3),
    program("./pfnmap", Tap).only(Base::Linux7_3),
    program("./prctl_thp_disable", Tap).only(Base::Linux7_3),
    program("./process_madv", Tap).only(Base::Linux7_3),
    program("./rmap", Tap).only(Base::Linux7_3),
    program("./hugetlb-madvise", Status).huge(128),
    program("./hugetlb_dio", Tap).huge(128),
    program("./hugetlb_madv_vs_map", Tap).huge(1),
    program("./ksm_functional_tests", Tap),
    program("./uffd-unit-tests -f register-ioctls", Userfaultfd).huge(128),
    program("./uffd-unit-tests -f zeropage", Userfaultfd).huge(128),
    program("./uffd-unit-tests -f move", Userfaultfd).huge(128),
    program("./uffd-unit-tests -f wp-fork", Userfaultfd).huge(128),
    program("./uffd-unit-tests -f wp-unpopulated", Userfaultfd).huge(128),
    program("./split_huge_page_test", Tap),
    program("./khugepaged", Khugepaged).race(IN_USE),
    program("./khugepaged -s 2", Khugepaged).race(IN_USE),
    program("./transhuge-stress -d 10", Tap),
    // 7.3's ends after some of its tests, without an error and anywhere, on the unpatched kernel as well.
    program("./protection_keys_64", Says("done (all tests OK)")).only(Base::Linux6_12),
    program("./hugetlb-soft-offline", Tap).huge(8),
    program("./hugetlb-read-hwpoison", Tap).huge(8),
    program("./compaction_test", Tap),
    program("./uffd-unit-tests -f minor", Userfaultfd)
        .huge(128)
        .long(),
    program("./uffd-unit-tests -f sigbus", Userfaultfd)
        .huge(128)
        .long(),
    program("./uffd-unit-tests -f events", Userfaultfd)
        .huge(128)
        .long(),
    program("./uffd-unit-tests -f poison", Userfaultfd)
        .huge(128)
        .long(),
    program("./migration", Tap).huge(32).long(),
    program("./hugetlb_fault_after_madv", Tap).huge(1).long(),
];

/// Those that do not, and why.
pub const LEFT_OUT: &[(&str, &str)] = &[
    (
        "hmm-tests",
        "needs CONFIG_TEST_HMM, which is a module, and this kernel has none",
    ),
    (
        "test_vmalloc.sh",
        "needs CONFIG_TEST_VMALLOC, which is a module, and this kernel has none",
    ),
    (
        "charge_reserved_hugetlb.sh",
        "needs the cgroup controller of huge pages",
    ),
    (
        "hugetlb_reparenting_test.sh",
        "needs the cgroup controller of huge pages",
    ),
    (
        "va_high_addr_switch.sh",
        "needs page tables of five levels, which this kernel has not",
    ),
    (
        "virtual_address_range",
        "maps all of an address space, for which the guest has not the memory",
    ),
    ("protection_keys_32", "needs a compiler for 32 bits"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn bases_have_what_their_trees_have() {
        let has = |base, name: &str| Program::all(base).any(|program| program.name() == name);
        for (name, bases) in [
            ("cow", [true, true]),
            ("seal_elf", [true, false]),
            ("hugetlb-mmap", [false, true]),
        ] {
            assert_eq!(Base::ALL.map(|base| has(base, name)), bases, "{name}");
        }
    }

    #[test]
    fn names_are_plain_and_unique() {
        let names: Vec<_> = PROGRAMS.iter().map(Program::name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert!(
            names.contains(&"ksm_tests-Z-p-10-z-1".to_owned()),
            "{names:?}"
        );
        assert!(names.contains(&"on-fault-limit".to_owned()), "{names:?}");
        assert!(
            names.iter().all(|name| !name.contains([' ', '/', '='])),
            "{names:?}"
        );
        let file = |name: &str| {
            PROGRAMS
                .iter()
                .find(|p| p.name() == name)
                .map(Program::file)
        };
        assert_eq!(file("on-fault-limit"), Some("on-fault-limit"));
        assert_eq!(file("uffd-stress-anon-20-4"), Some("uffd-stress"));
    }
}
