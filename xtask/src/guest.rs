//! Boots kernels and runs commands in them.
//!
//! `boot` starts a kernel with an initramfs that takes over the host's root file system and starts this tool again, as the
//! `agent`. Then `running` hands commands over the `channel`, in the frames of the `protocol`, and passes outputs on until the
//! `outcome` is known; what the kernel says meanwhile is in its `console` log.

pub mod agent;
mod boot;
mod channel;
mod command;
mod console;
mod cpu;
mod initramfs;
mod kvm;
pub mod memory;
mod outcome;
pub mod programs;
mod protocol;
mod running;
mod trace;

pub use boot::{Boot, MOST_CPUS, host};
pub use command::{Cmd, Limit, Output, Stdin};
pub use initramfs::machine;
pub use outcome::{End, Outcome};
pub use running::Guest;
pub use trace::Trace;
