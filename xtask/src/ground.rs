//! What all the rest stands on: where things are, files, processes and signals, and the packages of Debian's that are needed.

pub mod apt;
pub mod cache;
pub mod cross;
pub mod files;
pub mod git;
pub mod interrupt;
pub mod lock;
pub mod packages;
pub mod project;
pub mod qemu;
pub mod step;
pub mod unpacked;
