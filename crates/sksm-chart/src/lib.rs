//! Charts of SKSM's tools: groups of bars, and curves, one below the other, all with one look. A [`Picture`] is filled from top to
//! bottom, and becomes the text of an SVG.

#![deny(missing_docs)]

mod bars;
mod colours;
mod ink;
mod picture;
mod plot;

pub use bars::Bar;
pub use colours::{BLUE, GREEN, GREY, PALE_BLUE, PALE_GREEN, RED};
pub use picture::Picture;
pub use plot::{Axis, Curve, Plot, Point};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
