//! Code of loaded objects.

mod breakpoint;
mod image;
mod labels;
mod object;
mod private;
mod share;

pub use object::Object;
pub use share::Shared;
