//! What pages hold, so that each can be told from all others.

/// Word `word` of the page with this content: content 0 is all zeros, any other differs from all others in every word.
pub fn content(id: u64, word: usize) -> u64 {
    if id == 0 {
        0
    } else {
        // Odd factors: neighbouring ids and words share no bytes.
        id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (word as u64).wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
