//! Which inputs to keep: few that together reach all that all of them reach.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use libafl::HasMetadata;
use libafl::corpus::{Corpus, InMemoryCorpus};
use libafl::feedbacks::MapIndexesMetadata;
use libafl::inputs::BytesInput;

use crate::of_libafl;

pub fn smallest(corpus: &InMemoryCorpus<BytesInput>) -> Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for id in corpus.ids() {
        let testcase = corpus.get(id).map_err(of_libafl)?.borrow();
        let input: &[u8] = testcase
            .input()
            .as_ref()
            .context("it is in memory")?
            .as_ref();
        // The scheduler forgets what inputs reach for which it has better ones.
        let Ok(indexes) = testcase.metadata::<MapIndexesMetadata>() else {
            continue;
        };
        let reached = &indexes.list;
        all.push((input.to_vec(), reached.iter().copied().collect()));
    }
    Ok(cover(all))
}

/// Takes, again and again, the input that adds most for its length.
fn cover(mut all: Vec<(Vec<u8>, BTreeSet<usize>)>) -> Vec<Vec<u8>> {
    let mut kept = Vec::new();
    loop {
        let worth = |(input, new): &(Vec<u8>, BTreeSet<usize>)| {
            // Of a length there is always some, and a byte more is nothing.
            new.len() as f64 / (64 + input.len()) as f64
        };
        let best = (0..all.len()).max_by(|a, b| worth(&all[*a]).total_cmp(&worth(&all[*b])));
        let Some(best) = best.filter(|best| !all[*best].1.is_empty()) else {
            return kept;
        };
        let (input, reached) = all.swap_remove(best);
        for (_, new) in &mut all {
            new.retain(|place| !reached.contains(place));
        }
        kept.push(input);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_adds_nothing_is_left_out() {
        let one = |input: u8, reached: &[usize]| (vec![input], reached.iter().copied().collect());
        let all = vec![
            one(1, &[1, 2]),
            one(2, &[1, 2, 3, 4]),
            one(3, &[5]),
            one(4, &[3, 5]),
            one(5, &[]),
        ];
        let mut kept = cover(all);
        kept.sort();
        assert!(kept.len() == 2 && kept[0] == [2], "{kept:?}");
        assert_eq!(cover(Vec::new()), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn of_two_that_reach_the_same_the_shorter_is_kept() {
        let reached: BTreeSet<usize> = [7].into();
        let all = vec![(vec![0; 400], reached.clone()), (vec![0; 3], reached)];
        assert_eq!(cover(all), [vec![0; 3]]);
    }
}
