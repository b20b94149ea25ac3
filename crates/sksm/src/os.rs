//! What the system itself offers, each with the same few functions. Nothing of the crate but its plainest types is used here.

#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
mod elsewhere;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod handshake;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use elsewhere::{MERGEABLE, UNMERGEABLE, advise, ask, page_size};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use handshake::ask;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::{MERGEABLE, UNMERGEABLE, advise, errno, page_size};
