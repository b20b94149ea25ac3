//! A model of a merged page's life. See `README.md`.

mod bug;
mod folio;
mod index;
mod merge;
mod mm;
mod node;
mod plain;
mod release;
mod rmap;
mod scenario;
mod world;

pub use bug::Bug;
pub use scenario::{SCENARIOS, Scenario, scenario};
