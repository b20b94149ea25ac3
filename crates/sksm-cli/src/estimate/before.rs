//! What the first look saw, for a second one to compare with.

use std::collections::HashMap;
use std::ops::Range;

use super::pieces::Piece;

/// What pieces of memory held: of each page its place in the piece, and as much of its hash as fits.
#[derive(Default)]
pub struct Before {
    /// One part of each thread, which grows without being copied.
    parts: Vec<Vec<u64>>,
    /// Where in them a piece is, by its process and start.
    pieces: HashMap<(u32, u64), (usize, Range<usize>)>,
}

impl Before {
    /// Adds what one thread has seen: where its pieces are in what they held.
    pub fn add(&mut self, pieces: Vec<((u32, u64), Range<usize>)>, held: Vec<u64>) {
        let part = self.parts.len();
        let pieces = pieces.into_iter();
        let pieces = pieces.map(|(key, range)| (key, (part, range)));
        self.pieces.extend(pieces);
        self.parts.push(held);
    }

    pub fn of(&self, piece: &Piece) -> &[u64] {
        let found = self.pieces.get(&piece.key());
        let held = found.and_then(|(part, range)| self.parts.get(*part)?.get(range.clone()));
        held.unwrap_or_default()
    }
}
