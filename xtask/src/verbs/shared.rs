//! What several verbs share: how to measure in a guest, and how to count tests.

pub mod ksmd_watch;
pub mod measurement;
pub mod report;
