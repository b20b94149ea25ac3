//! What programs inside the test kernel write and `cargo xtask` reads: reports, and the names in them.
//!
//! The tool is compiled before anything else, so this needs little: what touches a kernel is in `sksm-guest`.

pub mod bench;
pub mod demo;
pub mod fuzz;
pub mod ksmd;
pub mod profile;
pub mod scan;
pub mod splats;
pub mod statistics;
