//! The reverse map of a merged page, after the kernel's `rmap.rs`.

use crate::folio::{FolioId, LockedFolio};
use crate::mm::{ProcessId, Pte};
use crate::world::World;

/// An anon_vma and a page offset: an index into [`World::anon_vmas`].
pub(crate) type Place = usize;

/// Guarded by the folio lock.
#[derive(Clone)]
pub(crate) struct Rmap {
    first: Place,
    more: Vec<Place>,
    /// The array's, counted here as it decides when dead places are dropped.
    capacity: usize,
}

impl Rmap {
    pub(crate) fn new(first: Place) -> Self {
        Self {
            first,
            more: Vec::new(),
            capacity: 0,
        }
    }

    pub(crate) fn push(&mut self, place: Place, folio: &LockedFolio<'_>, settled: bool) {
        if self.more.len() == self.capacity {
            self.make_room(folio, settled);
        }
        self.more.push(place);
    }

    /// Drops duplicates and dead places, and grows the array when that is not enough.
    fn make_room(&mut self, folio: &LockedFolio<'_>, settled: bool) {
        self.more.sort_unstable();
        self.more.dedup();
        if settled && self.more.len() >= folio.mapcount() {
            let (world, id) = (folio.world(), folio.id());
            self.more.retain(|place| is_live(world, *place, id));
        }
        // The kernel grows by doubling, from 2; the model by one, to get here soon.
        if self.more.len() == self.capacity {
            self.capacity += 1;
        }
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

/// Whether some process maps the folio here.
fn is_live(world: &World, place: Place, folio: FolioId) -> bool {
    world
        .processes_at(place)
        .any(|process: ProcessId| matches!(*world.pte(process), Pte::Mapped { folio: f, .. } if f == folio))
}
