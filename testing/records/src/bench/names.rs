//! What families and rows are called: who measures and who shows find each other's rows by these names.

/// The families, in the order that they run in.
pub mod family {
    pub const PAGES: &str = "pages";
    pub const CALLS: &str = "calls";
    pub const THREADS: &str = "threads";
    pub const BYSTANDER: &str = "bystander";
    pub const GROWTH: &str = "growth";
    pub const SHARERS: &str = "sharers";
    pub const CONCURRENCY: &str = "concurrency";
    pub const FAULTS: &str = "faults";
    pub const PROCESSES: &str = "processes";
    pub const RECLAIM: &str = "reclaim";
    pub const METADATA: &str = "metadata";
    pub const KSM: &str = "ksm";

    pub const ALL: [&str; 12] = [
        PAGES,
        CALLS,
        THREADS,
        BYSTANDER,
        GROWTH,
        SHARERS,
        CONCURRENCY,
        FAULTS,
        PROCESSES,
        RECLAIM,
        METADATA,
        KSM,
    ];
}

/// Of a page in a call over many, and the curves of these two.
pub const PUBLISH: &str = "publish unique content";
pub const DUPLICATE: &str = "merge a duplicate";
pub const ZEROS: &str = "a page of zeros";
pub const MERGED_ALREADY: &str = "merged already";
pub const NOT_PRESENT: &str = "not present";
/// In the kernel, as its own functions do it.
pub const KERNEL_HASH: &str = "xxh64 in the kernel";
pub const KERNEL_COMPARE: &str = "compare in the kernel";
pub const SMALL: &str = "4 KiB pages";
pub const HUGE: &str = "huge pages";
pub const MERGE: &str = "merge duplicates";

/// By the length of a call.
pub const CLOCK: &str = "the clock itself";
pub const NOTHING: &str = "a call over nothing";
pub const ONE_CALL: &str = "one page, one call";
pub const WRITTEN_AGO: &str = "written a while ago";
pub const WRITTEN_BEFORE: &str = "written just before";
pub const WRITTEN_ELSEWHERE: &str = "written just before on another CPU";
pub const IN_ONE_CALL: &str = "pages in one call";

/// While other threads run.
pub const WITH_THREADS: &str = "merge duplicates, pages in one call";
pub const OWN_FLUSHES: &str = "flushes of its own TLB by a call";
pub const OTHER_FLUSHES: &str = "interrupts that flush other TLBs, by a call";
pub const THREADS: [(usize, &str); 4] = [
    (0, "alone"),
    (1, "1 other thread"),
    (2, "2 other threads"),
    (8, "8 other threads"),
];

/// Of another thread of the process; `MAP_AND_UNMAP`'s variants go from the median to the longest.
pub const MAP_AND_UNMAP: &str = "another thread's mmap() and munmap()";
pub const AT_REST: [&str; 3] = [
    "at rest",
    "at rest, all but 1 in 100",
    "at rest, the longest",
];
pub const WHILE_MERGING: [&str; 3] = [
    "while it merges",
    "while it merges, all but 1 in 100",
    "while it merges, the longest",
];

/// Growth.
pub const PUBLISHED: &str = "pages published";
pub const SHARERS: &str = "processes that share each page";
pub const BYTES: &str = "bytes a mapping beyond the first";

/// Tasks at the same time.
pub const HASHED: &str = "hash different content in user space";
pub const DIFFERENT: &str = "merge different content";
pub const SAME: &str = "merge the same content";
pub const RACE: &str = "publish the same content";
pub const DISTURBED: &str = "merge different content while 2 others fault and copy on write";
pub const TASKS: [(usize, &str); 3] = [(1, "1 task"), (2, "2 tasks"), (4, "4 tasks")];
/// The baseline for two tasks that publish the same: one that does the work of both, publishes its pages and merges as many equal ones.
pub const ONE_FOR_TWO: &str = "1 task, twice";

/// What pages are that no engine has touched; kernels without SKSM have only those.
pub const ORDINARY: &str = "ordinary pages";
pub const ONE_USER: &str = "merged pages, one user";
pub const SHARED: &str = "merged pages, shared";
const KINDS: &[&str] = &[ORDINARY, ONE_USER, SHARED];

/// Afterwards: faults.
pub const WRITE: &str = "write fault";
pub const NEW: &str = "new page";
pub const FORKED: &str = "forked page: copied";
pub const FORKED_ALONE: &str = "forked page, child gone: in place";
pub const MERGED_SHARED: &str = "merged page, shared: copied";
pub const MERGED_ALONE: &str = "merged page, only user: in place";
pub const KSM_SHARED: &str = "KSM page, shared: copied";
pub const UNMAP: &str = "munmap";

/// Processes.
pub const FORK_ONLY: &str = "fork, exit, wait";
pub const EXEC: &str = "fork, exec, exit, wait";
pub const FORK: &str = "fork with pages, exit, wait";
pub const EXIT: &str = "exit with pages, wait";
pub const FORK_MANY: &str = "fork with a page table, each of many children";
pub const EXIT_MANY: &str = "exit with a page table, each of many children";

/// Reclaim.
pub const OUT: &str = "reclaim a physical page";
pub const BACK: &str = "read a mapping back";
pub const MERGED_TWICE: &str = "merged, mapped twice";
pub const KSM_TWICE: &str = "KSM, mapped twice";

/// Kernel memory.
pub const MAPPINGS: &str = "a page with so many mappings";
pub const OWN_COUNT: &str = "SKSM, bytes_metadata";
pub const SKSM_SLABS: &str = "SKSM, slabs";
pub const KSM_SLABS: &str = "KSM, slabs";

/// Rows of one name.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    pub family: &'static str,
    pub what: &'static str,
    pub variants: &'static [&'static str],
    /// User-Mode Linux has what it takes. It has one CPU, no huge pages, and neither trace nor perf events.
    pub on_uml: bool,
}

const fn rows(family: &'static str, what: &'static str, variants: &'static [&'static str]) -> Rows {
    Rows {
        family,
        what,
        variants,
        on_uml: true,
    }
}

impl Rows {
    const fn not_on_uml(mut self) -> Self {
        self.on_uml = false;
        self
    }
}

/// The second half of each pair.
const fn names<const N: usize>(pairs: [(usize, &'static str); N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut index = 0;
    while index < N {
        names[index] = pairs[index].1;
        index += 1;
    }
    names
}

const THREADS_NAMES: &[&str] = &names(THREADS);
const TASKS_NAMES: &[&str] = &names(TASKS);
const RACES: &[&str] = &[TASKS[0].1, ONE_FOR_TWO, TASKS[1].1, TASKS[2].1];

/// All rows that there are.
pub const ROWS: &[Rows] = &[
    rows(family::PAGES, PUBLISH, &[SMALL]),
    rows(family::PAGES, DUPLICATE, &[SMALL]),
    rows(family::PAGES, ZEROS, &[SMALL]),
    rows(family::PAGES, MERGED_ALREADY, &[SMALL]),
    rows(family::PAGES, NOT_PRESENT, &[SMALL]),
    rows(family::PAGES, PUBLISH, &[HUGE]).not_on_uml(),
    rows(family::PAGES, DUPLICATE, &[HUGE]).not_on_uml(),
    rows(family::PAGES, ZEROS, &[HUGE]).not_on_uml(),
    rows(family::PAGES, MERGED_ALREADY, &[HUGE]).not_on_uml(),
    rows(family::PAGES, NOT_PRESENT, &[HUGE]).not_on_uml(),
    rows(family::PAGES, KERNEL_HASH, &[SMALL]).not_on_uml(),
    rows(family::PAGES, KERNEL_COMPARE, &[SMALL]).not_on_uml(),
    rows(family::CALLS, CLOCK, &[""]),
    rows(family::CALLS, NOTHING, &[""]),
    rows(family::CALLS, ONE_CALL, &[WRITTEN_AGO, WRITTEN_BEFORE]),
    rows(family::CALLS, ONE_CALL, &[WRITTEN_ELSEWHERE]).not_on_uml(),
    rows(family::CALLS, IN_ONE_CALL, &[PUBLISH, MERGE]),
    rows(family::THREADS, WITH_THREADS, THREADS_NAMES.split_at(1).0),
    rows(family::THREADS, WITH_THREADS, THREADS_NAMES.split_at(1).1).not_on_uml(),
    rows(family::THREADS, OWN_FLUSHES, THREADS_NAMES).not_on_uml(),
    rows(family::THREADS, OTHER_FLUSHES, THREADS_NAMES).not_on_uml(),
    rows(family::BYSTANDER, MAP_AND_UNMAP, &AT_REST).not_on_uml(),
    rows(family::BYSTANDER, MAP_AND_UNMAP, &WHILE_MERGING).not_on_uml(),
    rows(family::GROWTH, PUBLISHED, &[PUBLISH, MERGE]),
    rows(family::SHARERS, SHARERS, &[PUBLISH, MERGE, BYTES]),
    rows(family::CONCURRENCY, HASHED, TASKS_NAMES),
    rows(family::CONCURRENCY, DIFFERENT, TASKS_NAMES),
    rows(family::CONCURRENCY, SAME, TASKS_NAMES),
    rows(family::CONCURRENCY, PUBLISH, TASKS_NAMES),
    rows(family::CONCURRENCY, RACE, RACES),
    rows(family::CONCURRENCY, DISTURBED, TASKS_NAMES),
    rows(
        family::FAULTS,
        WRITE,
        &[
            NEW,
            FORKED,
            FORKED_ALONE,
            MERGED_SHARED,
            MERGED_ALONE,
            KSM_SHARED,
        ],
    ),
    rows(family::FAULTS, UNMAP, KINDS),
    rows(family::PROCESSES, FORK_ONLY, &[""]),
    rows(family::PROCESSES, EXEC, &[""]),
    rows(family::PROCESSES, FORK, KINDS),
    rows(family::PROCESSES, EXIT, KINDS),
    rows(family::PROCESSES, FORK_MANY, KINDS),
    rows(family::PROCESSES, EXIT_MANY, KINDS),
    rows(family::RECLAIM, OUT, &[ORDINARY, MERGED_TWICE, KSM_TWICE]),
    rows(family::RECLAIM, BACK, &[ORDINARY, MERGED_TWICE, KSM_TWICE]),
    rows(
        family::METADATA,
        MAPPINGS,
        &[OWN_COUNT, SKSM_SLABS, KSM_SLABS],
    ),
];

/// Whether there is such a row.
pub fn known(family: &str, what: &str, variant: &str) -> bool {
    ROWS.iter()
        .any(|rows| (rows.family, rows.what) == (family, what) && rows.variants.contains(&variant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_rows_and_every_row_a_family() {
        for name in family::ALL {
            // Its figures are not rows.
            let some = ROWS.iter().any(|rows| rows.family == name);
            assert_eq!(some, name != family::KSM, "{name}");
        }
        assert!(
            ROWS.iter()
                .all(|rows| family::ALL.contains(&rows.family) && !rows.variants.is_empty())
        );
    }

    #[test]
    fn rows_are_known_by_all_parts_of_their_names() {
        assert!(known(family::CONCURRENCY, SAME, "2 tasks"));
        assert!(!known(family::CONCURRENCY, SAME, "3 tasks"));
        assert!(!known(family::PAGES, SAME, "2 tasks"));
        assert!(!known(family::PAGES, OUT, SMALL));
    }
}
