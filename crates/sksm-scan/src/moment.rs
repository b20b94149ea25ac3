use std::num::NonZeroU64;
use std::time::Duration;

/// A moment by the world's clock, or no longer than its nanoseconds fit: half as large as a `Duration`, as each block has some.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroU64);

impl Moment {
    pub const START: Moment = Moment(NonZeroU64::MIN);
    pub const NEVER: Moment = Moment(NonZeroU64::MAX);

    pub fn time(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

impl Default for Moment {
    fn default() -> Self {
        Self::START
    }
}

impl From<Duration> for Moment {
    fn from(time: Duration) -> Self {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Moment(Self::START.0.saturating_add(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_small_and_in_order() {
        assert_eq!(size_of::<Option<Moment>>(), 8);
        let second = Moment::from(Duration::from_secs(1));
        assert_eq!(second.time(), Duration::from_secs(1));
        assert!(Moment::START < second && second < Moment::NEVER);
        assert!(
            Moment::from(Duration::MAX) == Moment::NEVER
                && Moment::from(Duration::ZERO) == Moment::START
        );
    }
}
