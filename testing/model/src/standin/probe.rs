//! What the checks at the end want to know of the engine's data. No thread runs then.

use core::ptr::NonNull;

use kernel::atomic::Relaxed;
use kernel::bindings;

use super::node::Node;

/// The folio of a node.
pub(crate) fn folio(node: usize) -> *mut bindings::folio {
    // SAFETY: The caller has the number from the table or from a folio, and nodes stay.
    unsafe { (*(node as *const Node)).folio_hint() }
}

/// The next older copy.
pub(crate) fn older(node: usize) -> usize {
    // SAFETY: As above.
    unsafe { (*(node as *const Node)).older.load(Relaxed) as usize }
}

/// The sample's hash.
pub(crate) fn sample(node: usize) -> u64 {
    // SAFETY: As above.
    unsafe { (*(node as *const Node)).sample() }
}

/// How many mappings of its page are said to come.
pub(crate) fn pending(node: usize) -> u16 {
    // SAFETY: As above.
    unsafe { (*(node as *const Node)).pending() }
}

/// How many mappings it is said to save.
pub(crate) fn saved(node: usize) -> u16 {
    // SAFETY: As above.
    unsafe { (*(node as *const Node)).saved() }
}

/// Where it sleeps, as the table knows it.
pub(crate) fn slot(node: usize) -> usize {
    // SAFETY: As above; nobody else is at it.
    unsafe { (*(node as *const Node)).slot().get() as usize }
}

/// Calls `f` with every VMA and address of its reverse map.
pub(crate) fn places(node: usize, f: &mut dyn FnMut(*mut bindings::vm_area_struct, usize)) {
    // SAFETY: As above.
    unsafe { (*(node as *const Node)).rmap() }.for_each_vma(f);
}

/// What it is counted with.
pub(crate) fn bytes(node: usize) -> usize {
    // SAFETY: As above.
    size_of::<Node>() + unsafe { (*(node as *const Node)).rmap() }.bytes()
}

/// The node of a link of the table.
pub(crate) fn node(link: NonNull<bindings::sksm_link>) -> usize {
    // SAFETY: As above.
    unsafe { Node::from_link(link) as *const Node as usize }
}

/// Tells the checker of the statics that threads meet at.
pub(crate) fn begin(samples: &[u64]) {
    for sample in samples {
        super::index::published(*sample);
        kernel::world::world().shard(super::index::shard_of(*sample) as u32);
    }
}
