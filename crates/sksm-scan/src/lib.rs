//! The scanner: which pages of which processes are worth merging, and when.
//!
//! Whoever knows when memory is stable calls `MADV_MERGE`. For memory whose owner cannot know, a guest's in its VMM or an
//! interpreter's heap, somebody has to look. A [`Tracker`] looks at memory of its own process, in a VMM for instance.
//!
//! Below it, a [`Scanner`] decides what is looked at, when, and what is merged; it reads no memory and no clock. A [`World`] does that
//! for it: the tracker has one, `sksm scan` has one of other processes, tests have one that is made up.
//!
//! # How it goes
//!
//! - **Looks.** A few bytes of each page, its sample, are read now and then. A page whose sample was the same for the
//!   [stable time](Settings::stable) may be merged. What stays as it is is looked at ever more rarely, and so is what never stays.
//! - **Twins.** A page is a candidate when another one of its merge domain has the same sample. Candidates are read in full once, and
//!   those are merged whose hash another has. Before that nothing is write-protected, split or published.
//! - **Coming apart.** A merged page that was written soon has to stay unchanged twice as long before the next merge, and twice as
//!   long again each time.
//! - **Huge pages** are split only for [so many](Settings::huge_min) twins in one, and for twice as many after a split that
//!   brought little.
//! - **A budget** of CPU time is kept over any minute.
//!
//! [`Scanner::step`] does one small piece of work, a few milliseconds at most, or tells how long there is nothing to do.

// What is public may grow without breaking programs, unless it says why it is whole.
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod budget;
mod filter;
mod known;
mod layout;
mod ledger;
mod moment;
mod page;
#[cfg(target_os = "linux")]
pub mod pagemap;
mod process;
pub mod sample;
mod scanner;
mod search;
mod settings;
#[cfg(target_os = "linux")]
mod shared;
#[cfg(target_os = "linux")]
mod tracker;
mod turns;
mod world;

pub use budget::Budget;
pub use filter::Filter;
pub use known::Known;
pub use ledger::Ledger;
pub use scanner::{Scanner, Step};
pub use settings::Settings;
#[cfg(target_os = "linux")]
pub use shared::SharedFilter;
#[cfg(target_os = "linux")]
pub use tracker::{Failed, Tracker, Twins, Unsupported};
pub use world::{Content, Found, Gone, Merged, Range, Seen, Whole, World};

/// So many pages are looked at together: a huge page of x86_64 and arm64 with pages of 4 KiB.
pub const BLOCK: u64 = 512;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
