//! What many values say together.

use serde::{Deserialize, Serialize};

/// Repeats of one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub count: usize,
    pub min: f64,
    /// A quarter of the values is at most this.
    pub lower: f64,
    pub median: f64,
    /// Three quarters of the values are at most this.
    pub upper: f64,
    pub max: f64,
}

impl Summary {
    /// None of no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        Some(Self {
            count: values.len(),
            min: *values.first()?,
            lower: percentile(&values, 25),
            median: percentile(&values, 50),
            upper: percentile(&values, 75),
            max: *values.last()?,
        })
    }
}

/// By nearest rank, of sorted values; 0 of none.
pub fn percentile<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<u64> = (1..=20).collect();
        assert_eq!(percentile(&values, 0), 1);
        assert_eq!(percentile(&values, 50), 10);
        assert_eq!(percentile(&values, 95), 19);
        assert_eq!(percentile(&values, 100), 20);
        assert_eq!(percentile(&[7], 95), 7);
        assert_eq!(percentile::<u64>(&[], 50), 0);
    }

    #[test]
    fn a_summary_does_not_depend_on_the_order() {
        let summary = Summary::of(vec![9.0, 1.0, 3.0, 5.0]).unwrap();
        let found = [
            summary.min,
            summary.lower,
            summary.median,
            summary.upper,
            summary.max,
        ];
        assert_eq!(found, [1.0, 1.0, 3.0, 5.0, 9.0]);
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
