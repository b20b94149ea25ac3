//! What a kernel's console log says went wrong.

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

/// Names the two functions. The kernel has races that its authors accept; the engine's count, and all its symbols
/// have its name in them.
const DATA_RACE: &str = "BUG: KCSAN:";

/// The complaints in a console log, in order, at most `limit` of them.
pub fn splats(log: &str, limit: usize) -> Vec<String> {
    log.lines()
        .filter(|line| SPLATS.iter().any(|splat| line.contains(splat)))
        .filter(|line| !HARMLESS.iter().any(|text| line.contains(text)))
        .filter(|line| !line.contains(DATA_RACE) || line.contains("sksm"))
        .map(|line| line.trim_end().to_owned())
        .take(limit)
        .collect()
}

pub fn panicked(log: &str) -> bool {
    log.contains("Kernel panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_in_order() {
        let log = "\
[    0.1] kasan: KernelAddressSanitizer initialized (generic)
[    2.0] BUG: KASAN: slab-use-after-free in sksm_merge+0x1/0x2
[    2.1] Call Trace:
[    3.0] WARNING: possible circular locking dependency detected
[    4.0] INFO: task sksm-random:77 blocked for more than 120 seconds.
[    5.0] rcu: INFO: rcu_preempt self-detected stall on CPU
[    6.0] Kernel panic - not syncing: Fatal exception
";
        let found = splats(log, 10);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[0].contains("KASAN"));
        assert!(found[4].contains("panic"));
        assert!(panicked(log));
        assert_eq!(splats(log, 2).len(), 2);
    }

    #[test]
    fn an_ordinary_boot_is_clean() {
        let log = "\
[    0.000000] Linux version 6.12.0
[    0.1] Warning: tempdir /var/tmp is not on tmpfs
[    0.2] random: crng init done
[    0.3] traps: prog[7] general protection fault ip:1 sp:2 error:0
[    0.4] sksm-init: ready
[    1.0] reboot: Power down
";
        assert_eq!(splats(log, 10), Vec::<String>::new());
        assert!(!panicked(log));
    }

    #[test]
    fn the_engines_data_races_count() {
        let log = "\
[    5.0] BUG: KCSAN: data-race in folio_mark_accessed / workingset_activation
[    6.0] BUG: KCSAN: data-race in _RNvMs_NtCs1_4sksm4nodeNtB4_4Node7publish / do_wp_page
[    7.0] BUG: KCSAN: data-race in folio_add_lru / sksm_folio_dirty
";
        assert_eq!(splats(log, 10).len(), 2);
    }

    #[test]
    fn a_failed_mount_is_found() {
        assert_eq!(
            splats("[ 0.2] sksm-init: mount -t 9p failed\n", 10).len(),
            1
        );
    }
}
