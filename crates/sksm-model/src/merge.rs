//! One `MADV_MERGE` call on one page, after the kernel's `merge.rs` and `batch.rs`.

use loom::sync::atomic::{Ordering, fence};

use crate::bug::Bug;
use crate::folio::{Folio, Frame, LockedFolio, Mapping};
use crate::index::Found;
use crate::mm::{ProcessId, Pte};
use crate::node::Pending;
use crate::world::World;

/// How collecting takes the folio lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Locking {
    Try,
    Wait,
}

/// What is to become of the candidate.
enum Fate<'w> {
    Leave,
    Merge(Pending<'w>),
}

/// `is_candidate()`.
fn is_candidate(frame: &Frame) -> bool {
    matches!(frame.mapping(), Mapping::Anon(_)) && !frame.has_failed()
}

impl World {
    /// `madvise(MADV_MERGE)` by one process on its page.
    pub(crate) fn merge(&self, process: ProcessId) {
        if self.pass(process, Locking::Try).is_err() {
            // Somebody has locked the folio: alone, waiting.
            let _ = self.pass(process, Locking::Wait);
        }
        self.release();
    }

    /// `Call::pass()`; an error when the folio's lock was busy.
    fn pass(&self, process: ProcessId, locking: Locking) -> Result<(), ()> {
        let Some(folio) = self.collect(process, locking)? else {
            return Ok(());
        };
        if self.protect(process, &folio) {
            match self.decide(process, &folio) {
                Fate::Leave => {}
                Fate::Merge(page) => self.replace(process, &folio, page),
            }
        }
        Ok(())
    }

    /// `Batch::collect()`.
    fn collect(&self, process: ProcessId, locking: Locking) -> Result<Option<LockedFolio<'_>>, ()> {
        let pte = self.pte(process);
        let Pte::Mapped { folio: id, .. } = *pte else {
            return Ok(None);
        };
        if !is_candidate(self.frame(id)) {
            return Ok(None);
        }
        let folio = match locking {
            Locking::Try => LockedFolio::try_lock(self, id).ok_or(())?,
            Locking::Wait => {
                let folio = Folio::get(self, id);
                drop(pte);
                folio.lock()
            }
        };
        Ok(is_candidate(&folio).then_some(folio))
    }

    /// `Batch::protect()`: true when the bytes are stable.
    fn protect(&self, process: ProcessId, folio: &LockedFolio<'_>) -> bool {
        let mut pte = self.pte(process);
        if !pte.maps(folio.id()) {
            return false;
        }
        // Every mapping, and this batch.
        let pinned = folio.refs() != folio.mapcount() + 1;
        if pinned && !self.has(Bug::ProtectIgnoresReferences) {
            return false;
        }
        // The smp_mb() of folio_try_share_anon_rmap_pte(): bytes are read after references.
        fence(Ordering::SeqCst);
        *pte = Pte::read_only(folio.id());
        true
    }

    /// `Call::decide()`.
    fn decide<'w>(&'w self, process: ProcessId, folio: &LockedFolio<'w>) -> Fate<'w> {
        let place = self.place_of(process);
        let mut published = self.index.published();
        let mut key = match self.find(folio, place) {
            Found::Page(page) => return Fate::Merge(page),
            Found::Nothing(key) => key,
        };
        if self.has(Bug::PublishedReadTooLate) {
            published = self.index.published();
        }
        let Mapping::Anon(own_place) = folio.mapping() else {
            panic!("a locked candidate is merged by somebody else");
        };
        let node = self.new_node(folio, own_place);
        let _publishing = self.index.publish_lock();
        if !self.has(Bug::PublishWithoutSecondLook) && self.index.published() != published {
            key = match self.find(folio, place) {
                Found::Page(page) => {
                    self.free_node(node);
                    return Fate::Merge(page);
                }
                Found::Nothing(key) => key,
            };
        }
        self.publish(node, key, folio);
        Fate::Leave
    }

    /// `Batch::replace()`.
    fn replace(&self, process: ProcessId, folio: &LockedFolio<'_>, page: Pending<'_>) {
        let mut pte = self.pte(process);
        // Memory failure looks at this table after it has marked the page.
        if self.frame(page.folio()).has_failed() && !self.has(Bug::ReplaceMapsFailed) {
            return;
        }
        let replaced = match *pte {
            Pte::Mapped {
                folio: id,
                writable: false,
            } if id == folio.id() => id,
            Pte::Mapped { folio: id, .. } if self.has(Bug::ReplaceWithoutEntryCheck) => id,
            _ => return,
        };
        self.frame(page.folio()).add_mapping();
        *pte = Pte::read_only(page.folio());
        page.mapped();
        self.frame(replaced).remove_mapping();
        drop(Folio::from_raw(self, replaced));
    }
}
