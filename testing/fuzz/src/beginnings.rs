//! Inputs to begin with, where none has been found yet: some that say nothing, which is something too.

use sksm_guest::exercise::choices::Choices;

const MANY: usize = 24;
const BYTES: usize = 160;

/// Drawn from the seed.
pub fn of(seed: u64) -> Vec<Vec<u8>> {
    let mut choices = Choices::seeded(seed);
    (0..MANY)
        .map(|_| (0..BYTES).map(|_| choices.below(256) as u8).collect())
        .collect()
}
