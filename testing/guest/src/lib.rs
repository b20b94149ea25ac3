//! What the programs that run inside the test kernel share.
//!
//! Each part uses only those before it.

pub mod page;
pub mod skip;
pub mod syscall;

/// Mappings with known contents, what the kernel says of their pages, and the processes that have them.
pub mod memory {
    pub mod content;
    pub mod file;
    pub mod frames;
    pub mod map;
    pub mod oom;
    pub mod pagemap;
    pub mod process;
    pub mod rights;
    pub mod userfault;
}

/// The machine that a test runs on: what it has, how it is set, and what it tells of itself.
pub mod machine {
    pub mod blocks;
    pub mod cgroup;
    pub mod code;
    pub mod cpu;
    pub mod disk;
    pub mod fuse;
    pub mod hmm;
    pub mod kcov;
    pub mod ksmd;
    pub mod lock_stat;
    pub mod numa;
    pub mod profile;
    pub mod settings;
    pub mod slow;
    pub mod swap;
    pub mod sysfs;
    pub mod system;
    pub mod tags;
    pub mod tracefs;
}

/// How a program runs its tests or measurements, and tells what came of it.
pub mod harness {
    pub mod json;
    pub mod patience;
    pub mod program;
    pub mod report;
    pub mod scanner;
    pub mod stacks;
}

/// Processes that do whatever can be done to memory, merge, and know what every byte must be.
pub mod exercise {
    pub mod arena;
    pub mod changer;
    pub mod choices;
    pub mod corpus;
    pub mod faults;
    pub mod operation;
    pub mod pins;
    pub mod runner;
    pub mod shadow;
    pub mod shared;
    pub mod system;
    pub mod worker;
}
