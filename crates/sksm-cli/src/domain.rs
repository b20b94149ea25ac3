//! What the pages of a process may merge with. A domain is a scope, all of the machine or a control group, and an identity: the
//! user and the namespaces of who owns the memory.

mod apart;
mod group;
mod mode;
mod names;
mod owner;

pub use mode::Mode;
pub use names::{Names, Users};
pub use owner::{Domain, Owner};
