//! What a kernel's complaints about itself look like, for the tool that reads its log and for programs that run in it.

/// A line that contains one of these is a complaint of the kernel about itself.
const SPLATS: &[&str] = &[
    "BUG:",
    "=== BUG",
    "BUG kmalloc",
    "kernel BUG at",
    "WARNING:",
    "Oops",
    "KASAN:",
    "KFENCE:",
    "UBSAN:",
    "Kernel panic",
    "general protection fault,",
    "possible recursive locking",
    "possible circular locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "suspicious RCU usage",
    "sleeping function called",
    "scheduling while atomic",
    "bad unlock balance",
    "held lock freed",
    "lock held when returning to user space",
    "rcu: INFO:",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "list_add corruption",
    "list_del corruption",
    "bad page state",
    "Bad page state",
    "Bad page map",
    "Bad rss-counter",
    "page_table_check",
    "kmemleak:",
    "unreferenced object",
    "refcount_t:",
    "ODEBUG:",
    "pagealloc:",
    "page_owner tracking failed",
    "rust_kernel: panicked",
    "Internal error",
    "sksm-init: ",
];

/// Harmless although they look like one of the above.
const HARMLESS: &[&str] = &[
    "sksm-init: ready",
    // Says that it will report leaks, not that there is one.
    "kmemleak: Kernel memory leak detector initialized",
    "kmemleak: Automatic memory scanning thread started",
];

/// Whether a line of the log is a complaint.
pub fn complains(line: &str) -> bool {
    SPLATS.iter().any(|splat| line.contains(splat))
        && !HARMLESS.iter().any(|text| line.contains(text))
}
