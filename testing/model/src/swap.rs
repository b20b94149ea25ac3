//! Swap space: slots that entries count, with a folio in the cache or the bytes alone.

use std::cell::Cell;
use std::ptr::null_mut;

use crate::bindings::{folio, swp_entry_t, Words};
use crate::lock::Spin;
use crate::world::{world, POISON};

const SLOTS: usize = 4;

pub(crate) struct Slot {
    /// Page-table entries.
    pub(crate) count: Cell<usize>,
    pub(crate) cached: Cell<*mut folio>,
    /// Neither has it any more, and it is not given to others yet.
    going: Cell<bool>,
    /// Once it was written out.
    pub(crate) words: Cell<Words>,
}

impl Slot {
    fn is_free(&self) -> bool {
        self.count.get() == 0 && self.cached.get().is_null() && !self.going.get()
    }
}

pub(crate) struct Swap {
    /// Whether anything is swapped in this scenario.
    pub(crate) used: Cell<bool>,
    /// Guards the slots: the locks of swap cache and cluster.
    pub(crate) lock: Spin,
    pub(crate) slots: [Slot; SLOTS],
}

impl Swap {
    pub(crate) fn new() -> Self {
        Self {
            used: Cell::new(false),
            lock: Spin::new(),
            slots: std::array::from_fn(|_| Slot {
                count: Cell::new(0),
                cached: Cell::new(null_mut()),
                going: Cell::new(false),
                words: Cell::new(POISON),
            }),
        }
    }

    /// The slot whose cache is this folio. With the lock.
    pub(crate) fn of(&self, folio: *mut folio) -> Option<usize> {
        self.slots.iter().position(|s| s.cached.get() == folio)
    }

    /// A slot that nobody uses, for this folio. With the lock.
    pub(crate) fn take(&self, folio: *mut folio) -> usize {
        let slot = self.slots.iter().position(Slot::is_free);
        let slot = slot.expect("the model has too little swap space");
        self.slots[slot].cached.set(folio);
        self.slots[slot].words.set(POISON);
        slot
    }

    /// Calls `f` with a slot and the lock, for entry or cache to give it up, and frees it if the
    /// other has none: `free_swap_slot()`.
    pub(crate) fn give_up<R>(&self, entry: usize, f: impl FnOnce(&Slot) -> R) -> R {
        let slot = &self.slots[entry];
        let (result, free) = self.lock.with(|| {
            let result = f(slot);
            let free = slot.is_free();
            slot.going.set(free);
            (result, free)
        });
        if free {
            if world().any_asleep.get() {
                (world().engine.slot_freed)(swp_entry_t { val: entry });
            }
            self.lock.with(|| slot.going.set(false));
        }
        result
    }
}
