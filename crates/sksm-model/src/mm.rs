//! The parts of mm that meet merged pages: page tables, write faults, unmapping, migration and
//! reclaim's look at references.

use loom::sync::MutexGuard;

use crate::bug::Bug;
use crate::folio::{Folio, FolioId, LockedFolio, Mapping};
use crate::rmap::Place;
use crate::world::World;

/// A process; it has one page.
pub type ProcessId = usize;

/// A page-table entry. The TLB is not modelled: loads and stores look at the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pte {
    None,
    /// A writable entry's folio is exclusive.
    Mapped {
        folio: FolioId,
        writable: bool,
    },
    /// A migration entry.
    Migrating(FolioId),
    /// An entry for a page that has failed: who touches it dies.
    Failed,
}

impl Pte {
    pub(crate) fn read_only(folio: FolioId) -> Self {
        Self::Mapped {
            folio,
            writable: false,
        }
    }

    pub(crate) fn maps(self, id: FolioId) -> bool {
        matches!(self, Self::Mapped { folio, .. } if folio == id)
    }
}

impl World {
    /// Locks a process's page table.
    pub(crate) fn pte(&self, process: ProcessId) -> MutexGuard<'_, Pte> {
        self.page_tables[process].lock().unwrap()
    }

    /// A load by a process; `None` when the page is unmapped.
    pub(crate) fn read(&self, process: ProcessId) -> Option<u8> {
        loop {
            let pte = self.pte(process);
            match *pte {
                Pte::None | Pte::Failed => return None,
                Pte::Mapped { folio, .. } => return Some(self.frame(folio).load()),
                Pte::Migrating(folio) => {
                    drop(pte);
                    self.frame(folio).lock.wait();
                }
            }
        }
    }

    /// A store by a process.
    pub(crate) fn write(&self, process: ProcessId, byte: u8) {
        if let Some((pte, folio)) = self.make_writable(process) {
            self.frame(folio).store(byte);
            drop(pte);
        }
        self.release();
    }

    /// A store by whoever got the page with `get_user_pages()`: without looking at the entry again.
    pub(crate) fn write_pinned(&self, process: ProcessId, byte: u8) {
        if let Some((pte, folio)) = self.make_writable(process) {
            let pin = Folio::get(self, folio);
            drop(pte);
            pin.store(byte);
        }
        self.release();
    }

    /// Write faults until the entry is writable: `do_wp_page()`. `None` when nothing is mapped.
    fn make_writable(&self, process: ProcessId) -> Option<(MutexGuard<'_, Pte>, FolioId)> {
        loop {
            let mut pte = self.pte(process);
            let entry = *pte;
            match entry {
                Pte::None | Pte::Failed => return None,
                Pte::Migrating(folio) => {
                    drop(pte);
                    self.frame(folio).lock.wait();
                }
                Pte::Mapped { folio, writable } => {
                    if writable || self.can_reuse(folio, self.place_of(process)) {
                        *pte = Pte::Mapped {
                            folio,
                            writable: true,
                        };
                        return Some((pte, folio));
                    }
                    let old = Folio::get(self, folio);
                    drop(pte);
                    self.copy_on_write(process, entry, &old);
                }
            }
        }
    }

    /// `wp_can_reuse_anon_folio()`.
    fn can_reuse(&self, id: FolioId, place: Place) -> bool {
        if self.frame(id).is_merged() {
            return self.withdraw(id, place);
        }
        if self.frame(id).refs() > 1 {
            return false;
        }
        // The model's locks come with a reference, mm's here does not.
        let Some(folio) = LockedFolio::try_lock(self, id) else {
            return false;
        };
        if folio.refs() != 2 || !matches!(folio.mapping(), Mapping::Anon(_)) {
            return false;
        }
        folio.set_mapping(Mapping::Anon(place));
        true
    }

    /// `wp_page_copy()`: the page table was unlocked meanwhile.
    fn copy_on_write(&self, process: ProcessId, entry: Pte, old: &Folio<'_>) {
        let mapping = Mapping::Anon(self.place_of(process));
        let copy = Folio::alloc(self, old.load(), mapping);
        let mut pte = self.pte(process);
        if *pte == entry {
            copy.add_mapping();
            *pte = Pte::Mapped {
                folio: copy.into_raw(),
                writable: true,
            };
            old.remove_mapping();
            drop(pte);
            drop(Folio::from_raw(self, old.id()));
        }
    }

    /// Exit, munmap or `MADV_DONTNEED`.
    pub(crate) fn unmap(&self, process: ProcessId) {
        let entry = std::mem::replace(&mut *self.pte(process), Pte::None);
        if let Pte::Mapped { folio, .. } = entry {
            self.frame(folio).remove_mapping();
            drop(Folio::from_raw(self, folio));
        }
        self.release();
    }

    /// Takes a reference of the folio that a process maps, as whoever isolates pages does.
    fn isolate(&self, process: ProcessId) -> Option<Folio<'_>> {
        match *self.pte(process) {
            Pte::Mapped { folio, .. } => Some(Folio::get(self, folio)),
            _ => None,
        }
    }

    /// Moves the merged page of a process to another folio: `migrate_pages()`.
    pub(crate) fn migrate(&self, process: ProcessId) {
        if let Some(old) = self.isolate(process) {
            let old = old.lock();
            if let Some(node) = self.node_of(&old) {
                let new = Folio::alloc(self, crate::folio::POISON, Mapping::None).lock();
                self.try_to_migrate(&old);
                // Only the isolating reference is left. A lookup may take one right after.
                if old.mapcount() == 0 && old.refs() == 1 {
                    new.store(old.load());
                    new.set_mapping(Mapping::Node(node));
                    self.migrate_node(&new, &old);
                    self.remove_migration_ptes(&old, &new);
                } else {
                    self.remove_migration_ptes(&old, &old);
                }
            }
        }
        self.release();
    }

    /// Calls `f` with every entry where the reverse map says that the folio may be mapped.
    fn walk(&self, folio: &Folio<'_>, mut f: impl FnMut(&mut Pte)) {
        let places = match folio.mapping() {
            Mapping::Node(node) => self.node(node).places(),
            Mapping::Anon(place) => vec![place],
            Mapping::None | Mapping::Orphan => return,
        };
        for place in places {
            for process in self.processes_at(place) {
                f(&mut self.pte(process));
            }
        }
    }

    fn try_to_migrate(&self, folio: &LockedFolio<'_>) {
        self.walk(folio, |pte| {
            if pte.maps(folio.id()) {
                *pte = Pte::Migrating(folio.id());
                folio.remove_mapping();
                drop(Folio::from_raw(self, folio.id()));
            }
        });
    }

    fn remove_migration_ptes(&self, old: &LockedFolio<'_>, new: &LockedFolio<'_>) {
        self.walk(new, |pte| {
            if *pte == Pte::Migrating(old.id()) {
                new.add_mapping();
                *pte = Pte::read_only(Folio::get(self, new.id()).into_raw());
            }
        });
    }

    /// The page of a process fails: `memory_failure()` down to `delete_from_lru_cache()`.
    pub(crate) fn fail(&self, process: ProcessId) {
        let folio = match *self.pte(process) {
            // Marked first.
            Pte::Mapped { folio, .. } if !self.frame(folio).set_failed() => Folio::get(self, folio),
            _ => return,
        };
        let folio = folio.lock();
        self.walk(&folio, |pte| {
            if pte.maps(folio.id()) {
                *pte = Pte::Failed;
                folio.remove_mapping();
                drop(Folio::from_raw(self, folio.id()));
            }
        });
        if !self.has(Bug::FailureKeepsNode) {
            self.folio_freed(folio.id());
        }
        // The reference stays: the page is never used again.
        folio.unlock().into_raw();
        self.release();
    }

    /// `folio_referenced()` as reclaim's: a walk over the reverse map of an isolated folio.
    pub(crate) fn look_at_references(&self, process: ProcessId) {
        if let Some(folio) = self.isolate(process) {
            if self.has(Bug::WalkWithoutLock) {
                if !folio.is_merged() {
                    self.walk(&folio, |_| {});
                }
            } else if folio.is_merged() {
                let id = folio.id();
                if let Some(folio) = LockedFolio::try_lock(self, id) {
                    self.walk(&folio, |_| {});
                }
            }
        }
        self.release();
    }
}
