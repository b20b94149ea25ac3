//! What an execution is to do wrong.

use crate::mistakes::MISTAKES;

/// A step left out, or done wrongly. Each must make the checker fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The engine's: one of `mistakes.rs`.
    Engine(usize),
    /// Mm's: a page that has failed keeps its node.
    FailureKeepsNode,
    /// The table's: a lookup that has strayed into another chain takes its end for that of its own.
    AnyEnd,
    /// Mm's: the reverse map of a page that was anonymous a moment ago is walked without its lock.
    WalkWithoutLock,
}

impl Planted {
    /// The engine's mistake of that name.
    #[must_use]
    pub fn engine(name: &str) -> Self {
        let at = MISTAKES.iter().position(|mistake| mistake.name == name);
        Self::Engine(at.unwrap_or_else(|| panic!("there is no mistake {name:?}")))
    }
}
