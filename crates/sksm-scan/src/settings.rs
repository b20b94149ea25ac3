use std::time::Duration;

use crate::page::STABLE;

/// What the administrator decides. Begin with those of `Settings::default()`, and set what is to be otherwise.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// So long the sample of a page must have been the same before the page is merged.
    pub stable: Duration,
    /// How much of one CPU all of it may take over any minute: 0.05 is 3 seconds. None: as much as there is.
    pub cpu: Option<f64>,
    /// A huge page is split when at least so many of its pages have a twin.
    pub huge_min: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            stable: Duration::from_secs(60),
            cpu: Some(0.05),
            huge_min: 64,
        }
    }
}

impl Settings {
    /// Time is counted in such parts of the stable time, of a millisecond at least.
    pub(crate) fn tick(&self) -> Duration {
        (self.stable / STABLE).max(Duration::from_millis(1))
    }
}
