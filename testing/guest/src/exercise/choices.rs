//! Where a process's decisions come from: drawn from a seed, or read from an input that somebody else makes up.

use std::ops::Range;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

/// A sequence of decisions, which is the same each time.
pub struct Choices(Source);

enum Source {
    /// Never ends.
    Seed(SmallRng),
    /// Decisions take one byte, or two where there are more than 256 possibilities, so that a change of a byte changes one
    /// decision and leaves the others as they are.
    Input(std::vec::IntoIter<u8>),
}

impl Choices {
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seed(SmallRng::seed_from_u64(seed)))
    }

    pub fn of_input(input: Vec<u8>) -> Self {
        Self(Source::Input(input.into_iter()))
    }

    /// Whether there are more; without them all decisions are for the first possibility.
    pub fn are_left(&self) -> bool {
        match &self.0 {
            Source::Seed(_) => true,
            Source::Input(rest) => rest.len() > 0,
        }
    }

    /// One of so many possibilities.
    pub fn below(&mut self, possibilities: usize) -> usize {
        match &mut self.0 {
            Source::Seed(random) => random.random_range(0..possibilities),
            Source::Input(rest) => {
                let mut byte = || usize::from(rest.next().unwrap_or(0));
                let number = match possibilities {
                    0..=256 => byte(),
                    _ => byte() << 8 | byte(),
                };
                number % possibilities
            }
        }
    }

    pub fn within(&mut self, range: Range<usize>) -> usize {
        range.start + self.below(range.len())
    }

    pub fn one_of<T: Copy>(&mut self, possibilities: &[T]) -> T {
        possibilities[self.below(possibilities.len())]
    }

    /// Decisions for somebody else, which are no longer this one's: of an input, as many bytes as the next one says.
    pub fn split(&mut self) -> Self {
        match &mut self.0 {
            Source::Seed(random) => Self::seeded(random.next_u64()),
            Source::Input(rest) => {
                let most = usize::from(rest.next().unwrap_or(0));
                Self::of_input(rest.take(most).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_read_byte_by_byte() {
        let mut choices = Choices::of_input(vec![7, 255, 1, 2, 9]);
        assert_eq!(choices.below(5), 2);
        assert_eq!(choices.below(256), 255);
        assert_eq!(choices.below(1000), 258);
        assert!(choices.are_left());
        assert_eq!(choices.one_of(&[3, 4]), 4);
        assert!(!choices.are_left());
        assert_eq!((choices.below(1000), choices.within(5..9)), (0, 5));
    }

    #[test]
    fn every_possibility_can_be_chosen_by_an_input() {
        for possibilities in [1, 2, 255, 256, 257, 812] {
            let chosen = |number: usize| {
                let input = match possibilities {
                    0..=256 => vec![number as u8],
                    _ => vec![(number >> 8) as u8, number as u8],
                };
                Choices::of_input(input).below(possibilities)
            };
            assert!((0..possibilities).all(|number| chosen(number) == number));
        }
    }

    #[test]
    fn a_part_for_somebody_else_is_gone() {
        let mut choices = Choices::of_input(vec![2, 10, 11, 12, 200, 13]);
        let mut first = choices.split();
        assert_eq!((first.below(100), first.below(100)), (10, 11));
        assert!(!first.are_left());
        assert_eq!(choices.below(100), 12);
        // More than there is.
        let mut rest = choices.split();
        assert_eq!(rest.below(100), 13);
        assert!(!choices.are_left() && !rest.are_left());
        assert!(!choices.split().are_left());
    }

    #[test]
    fn a_seed_repeats_its_decisions() {
        let decisions = |seed| {
            let mut choices = Choices::seeded(seed);
            let mut part = choices.split();
            [choices.below(1000), part.below(1000), choices.below(1000)]
        };
        assert_eq!(decisions(5), decisions(5));
        assert_ne!(decisions(5), decisions(6));
    }
}
