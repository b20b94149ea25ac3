//! In place of the engine's `sysfs.rs`: what an administrator set, once and before all else.

use kernel::atomic::Relaxed;
use kernel::prelude::*;
use kernel::world::world;

pub(crate) struct MaxPageSharing;

impl MaxPageSharing {
    pub(crate) fn load(&self, _order: Relaxed) -> u32 {
        world().limit
    }
}

pub(crate) static MAX_PAGE_SHARING: MaxPageSharing = MaxPageSharing;

pub(crate) struct MergeAcrossNodes;

impl MergeAcrossNodes {
    pub(crate) fn load(&self, _order: Relaxed) -> bool {
        world().across_nodes
    }
}

pub(crate) static MERGE_ACROSS_NODES: MergeAcrossNodes = MergeAcrossNodes;

pub(crate) fn init() -> Result {
    Ok(())
}
