//! The colours that there are.

pub const BACKGROUND: &str = "#fbfbf9";
/// Of text that matters, of other text, and of lines behind curves.
pub const INK: &str = "#1f2933";
pub const FAINT: &str = "#66727f";
pub const RULE: &str = "#dfe3e6";

/// What is compared with.
pub const GREY: &str = "#a9b4c0";
/// What costs.
pub const RED: &str = "#d8735a";
/// SKSM's, and what it saves.
pub const GREEN: &str = "#16836b";
/// A variant of it.
pub const PALE_GREEN: &str = "#79b8a8";
/// A second curve of SKSM's.
pub const BLUE: &str = "#3f6aa8";
/// KSM's.
pub const PALE_BLUE: &str = "#7c9cc4";
