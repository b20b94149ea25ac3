/// How many pages have each sample, roughly: a counter for each of many places, and a sample counts in one of them.
///
/// It is lossy. Two samples may have the same place, so that a page seems to have a twin; whoever asks looks closer then. What has a
/// twin is never missed.
#[derive(Debug)]
pub struct Filter {
    /// A power of two of them.
    counters: Vec<u8>,
    /// Samples that were added and not taken out.
    samples: usize,
}

/// So many places for each sample, at least: one in eight of the samples that are alone seems not to be.
const PLACES: usize = 4;
const LEAST: usize = 1 << 12;

impl Default for Filter {
    fn default() -> Self {
        Filter {
            counters: vec![0; LEAST],
            samples: 0,
        }
    }
}

impl Filter {
    /// One that has room for so many samples.
    #[must_use]
    pub fn for_samples(samples: usize) -> Self {
        let places = (samples * PLACES).next_power_of_two().max(LEAST);
        Filter {
            counters: vec![0; places],
            samples: 0,
        }
    }

    /// Whether it should be built anew, larger or smaller.
    #[must_use]
    pub fn outgrown(&self) -> bool {
        let places = self.counters.len();
        self.samples * PLACES > 2 * places || places > LEAST && self.samples * PLACES * 8 < places
    }

    /// A page has come that has this sample.
    pub fn add(&mut self, sample: u32) {
        let counter = self.counter(sample);
        *counter = counter.saturating_add(1);
        self.samples += 1;
    }

    /// A page with this sample has gone, or has another sample now.
    pub fn remove(&mut self, sample: u32) {
        let counter = self.counter(sample);
        // How many there are of a full one is not known.
        if *counter != u8::MAX {
            *counter = counter.saturating_sub(1);
        }
        self.samples = self.samples.saturating_sub(1);
    }

    /// Whether a page of this sample may have a twin.
    #[must_use]
    pub fn twice(&self, sample: u32) -> bool {
        self.counters[self.place(sample)] > 1
    }

    /// In bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.counters.len()
    }

    fn counter(&mut self, sample: u32) -> &mut u8 {
        let place = self.place(sample);
        &mut self.counters[place]
    }

    fn place(&self, sample: u32) -> usize {
        // Samples are hashes already; their low bits are as good as any.
        sample as usize & (self.counters.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn twins_are_never_missed(
            changes in prop::collection::vec((0u32..200, any::<bool>()), 1..2000),
        ) {
            let (mut filter, mut right) = (Filter::default(), HashMap::new());
            for (sample, comes) in changes {
                let count: &mut u32 = right.entry(sample).or_default();
                match comes {
                    true => filter.add(sample),
                    false if *count > 0 => filter.remove(sample),
                    false => continue,
                }
                *count = if comes { *count + 1 } else { *count - 1 };
            }
            for (sample, count) in right {
                prop_assert!(count < 2 || filter.twice(sample));
            }
        }
    }

    #[test]
    fn few_that_are_alone_seem_not_to_be() {
        let mut filter = Filter::for_samples(1 << 16);
        let samples = (0..1u32 << 16).map(|number| number.wrapping_mul(0x9e37_79b1) >> 3);
        samples.clone().for_each(|sample| filter.add(sample));
        let wrong = samples.filter(|sample| filter.twice(*sample)).count();
        assert!(wrong < 1 << 14, "{wrong}");
        assert!(!filter.outgrown());
    }

    #[test]
    fn full_counters_stay_full() {
        let mut filter = Filter::default();
        (0..300).for_each(|_| filter.add(7));
        (0..299).for_each(|_| filter.remove(7));
        assert!(filter.twice(7));
    }
}
