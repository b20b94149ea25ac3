//! What the programs that run inside the test kernel share.

pub mod blocks;
pub mod cgroup;
pub mod demo;
pub mod disk;
pub mod memory;
pub mod numa;
pub mod pagemap;
pub mod process;
pub mod report;
pub mod settings;
pub mod swap;
pub mod sysfs;
pub mod tracefs;
