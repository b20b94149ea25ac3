//! What the man pages say of exit status, environment, files and signals.

/// A word, and what it means.
pub type Term = (&'static str, &'static str);

/// `sksm` itself stands for its verbs.
const SKSM: &str = "sksm";

const STATUS: [Term; 3] = [
    ("0", "All was done."),
    ("1", "It failed, or its output could not be written."),
    ("2", "The command line is wrong."),
];
const UNSUPPORTED: Term = ("3", "This kernel cannot do it.");
const DENIED: Term = ("4", "A right is missing.");
const PARTLY: Term = (
    "5",
    "Part was done: of the processes that were named, some have exited, or refuse access or all merging.",
);

pub fn status(verb: &str) -> Vec<Term> {
    let mut terms = STATUS.to_vec();
    match verb {
        "run" => {
            terms = vec![
                (
                    "1",
                    "The preload object was not found, cannot be put anywhere, or cannot be loaded.",
                ),
                ("2", "The command line is wrong."),
                ("126", "The program cannot be run."),
                ("127", "The program was not found."),
                (
                    "any other",
                    "That of the program, which takes the place of this command.",
                ),
            ];
        }
        "doctor" => terms.extend([
            ("3", "This kernel lacks what --require names."),
            ("4", "A right is missing for what --require names."),
        ]),
        "estimate" => terms.extend([DENIED, PARTLY]),
        "store" => terms.push(DENIED),
        "top" => terms.extend([UNSUPPORTED, DENIED]),
        "scan" => {
            terms[0] = (
                "0",
                "It was ended by a signal, or with --once has done all.",
            );
            terms.extend([UNSUPPORTED, DENIED]);
        }
        _ => terms.extend([UNSUPPORTED, DENIED, PARTLY]),
    }
    if verb == SKSM {
        terms.push(("any other", "That of the program, for sksm run."));
    }
    terms
}

const COLOURS: [Term; 2] = [
    ("NO_COLOR", "If it is set to anything: no colours."),
    (
        "CLICOLOR, CLICOLOR_FORCE",
        "0 in the first: no colours; anything but 0 in the second: colours also where the output is no terminal.",
    ),
];
const RUN: [Term; 5] = [
    (
        "SKSM_PRELOAD",
        "The preload object to load, instead of the one that is installed with this command.",
    ),
    (
        "XDG_CACHE_HOME",
        "Where the object is put if none is installed: in sksm-preload there, else in ~/.cache/sksm-preload, for root in /var/cache/sksm-preload.",
    ),
    (
        "LD_PRELOAD",
        "The object is put before what is there already.",
    ),
    (
        "ASAN_OPTIONS",
        "For programs with AddressSanitizer, verify_asan_link_order=0 is added to what is there.",
    ),
    (
        "SKSM, SKSM_AFTER, SKSM_SIGNAL, SKSM_STORE, SKSM_SECCOMP, SKSM_VERBOSE",
        "Set for the program, as the options say; SKSM_MIN_PAGES is passed on. See sksm-preload(7).",
    ),
];

const STORE: [Term; 2] = [
    (
        "SKSM_STORE_DIR",
        "Where the store is, on a tmpfs and closed to others; /dev/shm/sksm-UID if it is not set.",
    ),
    (
        "SKSM_STORE_LIMIT",
        "How much the store may hold, as in 800M or 2G; a tenth of the machine's memory if it is not set.",
    ),
];

pub fn environment(verb: &str) -> Vec<Term> {
    let mut terms = COLOURS.to_vec();
    if matches!(verb, "run" | SKSM) {
        terms.extend(RUN);
    }
    if matches!(verb, "run" | "store" | "stat" | "top" | "doctor" | SKSM) {
        terms.extend(STORE);
    }
    terms
}

const COUNTERS: Term = (
    "/sys/kernel/mm/sksm/",
    "Counters and settings of the engine; not there on other kernels.",
);
const DOMAIN: Term = (
    "/sys/kernel/mm/sksm/domain, /sys/fs/cgroup/.../memory.merge_domain",
    "Who shares with whom.",
);
const TMPFILES: Term = (
    "/usr/lib/tmpfiles.d/sksm.conf",
    "Sets the machine's merge domain at installation and at boot; a file of that name in /etc/tmpfiles.d stands in for it.",
);
const KSM: Term = ("/sys/kernel/mm/ksm/", "The same of KSM.");
const PROCESSES: Term = (
    "/proc/PID/smaps, /proc/PID/pagemap, /proc/PID/mem",
    "What processes hold. For those of other users CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are needed.",
);
const PRESSURE: Term = (
    "/proc/pressure/memory",
    "How scarce memory is, for --when pressure=...; not there on kernels without CONFIG_PSI, or with psi=0.",
);
const COUNTS: Term = (
    "/proc/PID/smaps_rollup, /proc/PID/ksm_stat",
    "What of a process is merged.",
);
const UNITS: Term = (
    "sksm-merge@.timer, sksm-merge@.service",
    "Units of systemd that merge a unit or control group every hour: systemctl enable --now sksm-merge@nginx.service.timer",
);
const SCAN_SERVICE: Term = (
    "sksm-scan.service",
    "The unit of systemd that runs this for as long as the machine does: systemctl enable --now sksm-scan",
);
const SCAN_SOCKET: Term = (
    "sksm-scan.socket, /run/sksm-scan.sock",
    "The unit that gives it a socket, as --serve does, and where that is: systemctl enable --now sksm-scan.socket, before the service starts",
);
const SCAN_CONFIGURATION: Term = (
    "/etc/sksm/scan.conf",
    "What that unit gives to --config: options, a line for each, as in stable = 5m. What it may hold stands in it.",
);
const SCAN_STATE: Term = (
    "/run/sksm-scan/state.json",
    "What a scanner does, or did, for sksm stat and sksm top; that of the unit is for root alone.",
);
const JSON: Term = (
    "/usr/share/doc/sksm/json.md",
    "The fields that --json prints, and their units.",
);
const OBJECT: Term = ("/usr/lib/sksm/libsksm_preload.so", "The preload object.");
const CACHE: Term = (
    "~/.cache/sksm-preload/, /var/cache/sksm-preload/",
    "Where this command puts the object that it carries, if none is installed; for root the second. Programs load it from there whenever they start others.",
);
const STORED: Term = (
    "/dev/shm/sksm-UID/",
    "The store: a file for each run of code and each piece of data that processes of this user share.",
);
const STORE_PAGE: Term = (
    "/usr/share/doc/sksm/store.md",
    "What the store promises, and what not.",
);
const GUIDE: Term = ("/usr/share/doc/sksm/guide.md", "The guide.");
const UNMERGE: Term = (
    "/sys/kernel/mm/sksm/unmerge",
    "What --all has the kernel do to the whole machine.",
);

pub fn files(verb: &str) -> Vec<Term> {
    match verb {
        "run" => vec![OBJECT, CACHE, STORED, GUIDE],
        "store" => vec![STORED, STORE_PAGE, JSON],
        "doctor" => vec![COUNTERS, DOMAIN, TMPFILES, KSM, STORED, JSON],
        "merge" => vec![COUNTERS, DOMAIN, PROCESSES, UNITS, JSON],
        "unmerge" => vec![UNMERGE, PROCESSES, JSON],
        "estimate" => vec![DOMAIN, PROCESSES, JSON],
        "stat" => vec![COUNTERS, KSM, COUNTS, SCAN_STATE, STORED, JSON],
        "top" => vec![COUNTERS, KSM, DOMAIN, COUNTS, SCAN_STATE, JSON],
        "scan" => vec![
            SCAN_SERVICE,
            SCAN_SOCKET,
            SCAN_CONFIGURATION,
            SCAN_STATE,
            PRESSURE,
            COUNTERS,
            DOMAIN,
            KSM,
            PROCESSES,
            JSON,
        ],
        _ => vec![
            COUNTERS,
            DOMAIN,
            TMPFILES,
            KSM,
            PROCESSES,
            COUNTS,
            UNITS,
            SCAN_SERVICE,
            SCAN_SOCKET,
            SCAN_CONFIGURATION,
            SCAN_STATE,
            OBJECT,
            CACHE,
            STORED,
            STORE_PAGE,
            JSON,
            GUIDE,
        ],
    }
}

/// For the verb that runs until one comes.
pub fn signals(verb: &str) -> &'static [Term] {
    match verb {
        "scan" => &[
            (
                "SIGHUP",
                "Reads the file of --config again; where that has a mistake, all stays as it was, and the mistake is told. What is \
                 known of pages is kept, unless --stable is another one.",
            ),
            (
                "SIGTERM, SIGINT",
                "End it within a second, with a report of what it did. What is merged stays merged: sksm unmerge gives it back.",
            ),
        ],
        _ => &[],
    }
}

/// Other pages, with their chapters.
pub fn see_also(verb: &str) -> Vec<(&'static str, u8)> {
    let others: &[(&str, u8)] = match verb {
        "run" => &[("sksm-preload", 7), ("sksm-store", 1), ("ld.so", 8)],
        "store" => &[("sksm-run", 1), ("sksm-preload", 7), ("tmpfs", 5)],
        "doctor" => &[("capabilities", 7), ("tmpfiles.d", 5)],
        "merge" => &[
            ("sksm-estimate", 1),
            ("sksm-unmerge", 1),
            ("process_madvise", 2),
            ("systemd.timer", 5),
        ],
        "unmerge" => &[("sksm-merge", 1), ("madvise", 2)],
        "estimate" => &[("sksm-merge", 1), ("proc", 5)],
        "scan" => &[
            ("sksm-stat", 1),
            ("sksm-merge", 1),
            ("sksm-unmerge", 1),
            ("process_madvise", 2),
            ("systemd.service", 5),
        ],
        "stat" => &[("sksm-top", 1), ("sksm-scan", 1), ("proc", 5)],
        "top" => &[("sksm-stat", 1), ("proc", 5)],
        _ => &[("sksm-preload", 7), ("madvise", 2)],
    };
    let own = (verb != SKSM).then_some((SKSM, 1));
    own.into_iter().chain(others.iter().copied()).collect()
}
