// SPDX-License-Identifier: GPL-2.0-only

//! Merged pages that went bad while there is another page with the same bytes.
//!
//! A content with more users than one page may have stands in the index several times. When the
//! frame of one of these pages fails, a new page is made from another one and takes its place: all
//! who map it go on, and nobody is killed.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;

use super::folio::{Folio, FolioGuard, LockedFolio};
use super::index;
use super::mm;
use super::node::Node;
use super::stats::Stat;

/// A new page for the users of `old`, with its node and charge, and with the bytes of `copy`.
fn replacement(old: &LockedFolio, copy: &Folio) -> Option<FolioGuard> {
    // SAFETY: `old` is locked, and both are in use. The result is new, locked and referenced.
    unsafe {
        let new = bindings::sksm_folio_replacement(old.as_ptr(), copy.as_ptr());
        Some(FolioGuard::from_raw(NonNull::new(new)?))
    }
}

/// See [`super::sksm_folio_rescue`].
pub(crate) fn rescue(old: &mut LockedFolio) -> bool {
    // Swap has the bytes, perhaps; and entries would need the new page, too.
    if old.in_swapcache() {
        return false;
    }
    let Some(merged) = old.merged() else {
        return false;
    };
    // Somebody who is about to map the page has a reference to this one.
    if merged.is_awaited() {
        return false;
    }
    let node = merged.node();
    let new = index::copy_of(node).and_then(|copy| replacement(merged.folio(), &copy));
    let Some(new) = new else {
        return false;
    };
    // Clean anonymous pages without swap space are dropped by reclaim.
    new.mark_dirty();
    // Before it is mapped, so that mlock counts who locks it.
    // SAFETY: It is new.
    unsafe { new.add_to_lru() };
    mm::drain_local_batches();
    let saved = node.set_aside();
    let folio = merged.folio().as_ptr();
    merged.rmap().for_each_vma(|vma, addr| {
        // SAFETY: The VMA stays while its anon_vma is locked; both folios are locked.
        unsafe { bindings::sksm_folio_replace_at(folio, vma, addr, new.as_ptr()) };
    });
    node.put_back(saved, &new);
    Node::migrate(&new, old);
    Stat::Rescued.add(1);
    // A reverse map is complete; who was missing in it could not be told of the failure either.
    let left = old.mapcount();
    if left != 0 {
        pr_warn!("{} mappings of a page that failed were not found\n", left);
    }
    left == 0
}
