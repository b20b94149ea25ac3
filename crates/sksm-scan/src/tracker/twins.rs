use std::path::PathBuf;

/// What a page has to be, apart from stable, to be merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Twins {
    /// Equal to another page of the tracked memory, or of zeros.
    #[default]
    Own,
    /// The same, or equal to a page of another process of the same merge domain that asks the same service: `sksm scan --serve SOCKET`
    /// listens at this path. While nobody does, it is as [`Own`](Self::Own), and asked again.
    Service(PathBuf),
    /// Nothing more. Each stable page is published for others to find: right where most of the memory is the same in many processes.
    Everything,
}
