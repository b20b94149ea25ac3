//! In place of the engine's `unmerge.rs`, which only breaks pages one after the other.
