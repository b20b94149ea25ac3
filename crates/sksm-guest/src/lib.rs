//! What the programs that run inside the test kernel share.

pub mod bench;
pub mod blocks;
pub mod cgroup;
pub mod cpu;
pub mod demo;
pub mod disk;
pub mod json;
pub mod ksmd;
pub mod memory;
pub mod numa;
pub mod pagemap;
pub mod process;
pub mod profile;
pub mod report;
pub mod settings;
pub mod statistics;
pub mod swap;
pub mod sysfs;
pub mod system;
pub mod tracefs;
