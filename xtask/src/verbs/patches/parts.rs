//! How what `kernel/` lays over the tree is cut into patches.

/// Files of `kernel/` that are one patch.
pub struct Part<'a> {
    /// The hook that it comes before, without its number.
    pub before: &'a str,
    /// The first line is the subject.
    pub message: &'a str,
    /// A directory means the files in it that no part before this one has.
    pub files: &'a [&'a str],
}

pub const PARTS: &[Part] = &[
    Part {
        before: "ksm-leave-SKSM-s-pages-to-SKSM",
        message: "\
mm: declare what SKSM offers to the rest of mm

The entry points of synchronous samepage merging, for the hooks that
follow, and what a memory cgroup may say about it. Without CONFIG_SKSM,
which nothing can set yet, they are empty.
",
        files: &["include/linux/sksm.h"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: wrap mm's macros and inlines for Rust

What the engine needs of mm and Rust cannot call: macros, static inlines,
and tracepoints. No function here decides anything.
",
        files: &[
            "mm/sksm/glue.c",
            "mm/sksm/glue.h",
            "include/trace/events/sksm.h",
        ],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add counters and merge domains

Whoever shares a page can tell that somebody else holds the same bytes, so
pages merge within one domain only: what one user has in one memory cgroup,
or as far as the administrator says.
",
        files: &["mm/sksm/stats.rs", "mm/sksm/domain.rs"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add types for folios and page table entries

References, locks and page tables as types: what needs the folio lock or
the page table lock is a method of what holds it.
",
        files: &["mm/sksm/folio.rs", "mm/sksm/mm.rs", "mm/sksm/pte.rs"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add nodes, their index and their reverse map

A node belongs to each merged page: it says what is equal to the page and
where it is mapped. Nodes are found by domain, NUMA node and a keyed hash,
leave the index when their page is freed, and are released later, from
process context.
",
        files: &[
            "mm/sksm/asleep.rs",
            "mm/sksm/content.rs",
            "mm/sksm/index.rs",
            "mm/sksm/node.rs",
            "mm/sksm/release.rs",
            "mm/sksm/rescue.rs",
            "mm/sksm/rmap.rs",
        ],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: merge the pages of a range

One page table at a time: collect candidates, write-protect and hash them,
then map a merged page in place of equal ones, or publish a page that is
the first of its kind. A page that somebody else uses meanwhile stays as
it is.
",
        files: &["mm/sksm/batch.rs", "mm/sksm/merge.rs"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add files in /sys/kernel/mm/sksm

Settings, a way to part all merged pages again, and what was saved at what
price. Reading adds counters up and walks nothing.
",
        files: &[
            "mm/sksm/sysfs.rs",
            "mm/sksm/unmerge.rs",
            "Documentation/ABI/testing/sysfs-kernel-mm-sksm",
        ],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add the crate's root and its Kconfig symbol

The entry points that C calls, the order of locks, and which contexts they
are called from. Nothing includes the new Kconfig file and Makefile yet.
",
        files: &["mm/sksm/sksm.rs", "mm/sksm/"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
Documentation: mm: describe SKSM for administrators

What the advice does and when, what merge domains are for, and what the
files in /sys/kernel/mm/sksm say.
",
        files: &["Documentation/admin-guide/mm/sksm.rst"],
    },
    Part {
        before: "selftests-mm-build-and-run-the-tests-of-MADV_MERGE",
        message: "\
selftests/mm: add tests of MADV_MERGE

What the advice takes and refuses, what merges, parts and merges again in
six steps, who shares with whom, and how it is undone. With -s and -p a
step can be looked at from outside.
",
        files: &["tools/testing/selftests/mm/merge_tests.c"],
    },
];
