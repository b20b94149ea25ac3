//! The engine's source, compiled twice, and what mm calls of it.

include!(concat!(env!("OUT_DIR"), "/engines.rs"));

use std::ptr::{from_mut, NonNull};

use crate::bindings::{
    folio, mm_struct, rmap_walk_control, sksm_call, sksm_link, swp_entry_t, take_retired,
    vm_area_struct,
};

/// One of the copies: mm's entries, as in `include/linux/sksm.h`, and looks into its data.
pub(crate) struct Engine {
    /// `MADV_MERGE`: of each part of a VMA in turn.
    pub(crate) merge: fn(*mut mm_struct, &[(usize, usize)]),
    pub(crate) folio_free: fn(*mut folio),
    pub(crate) withdraw: fn(*mut folio, *mut vm_area_struct, usize) -> bool,
    pub(crate) unmapped: fn(*mut folio, *mut vm_area_struct),
    pub(crate) swapped: fn(*mut folio, *mut vm_area_struct),
    pub(crate) swapped_in: fn(*mut folio, *mut vm_area_struct),
    pub(crate) folio_sleep: fn(*mut folio, swp_entry_t),
    pub(crate) folio_wake: fn(*mut folio),
    pub(crate) slot_freed: fn(swp_entry_t),
    pub(crate) rmap_walk: fn(*mut folio, &mut rmap_walk_control),
    pub(crate) migrate: fn(*mut folio, *mut folio),
    pub(crate) rescue: fn(*mut folio) -> bool,
    pub(crate) release: fn(),
    pub(crate) begin: fn(&[u64]),
    pub(crate) node_of_link: fn(NonNull<sksm_link>) -> usize,
    pub(crate) node_folio: fn(usize) -> *mut folio,
    pub(crate) node_older: fn(usize) -> usize,
    pub(crate) node_sample: fn(usize) -> u64,
    pub(crate) node_pending: fn(usize) -> u16,
    pub(crate) node_saved: fn(usize) -> u16,
    pub(crate) node_slot: fn(usize) -> usize,
    pub(crate) node_places: fn(usize, &mut dyn FnMut(*mut vm_area_struct, usize)),
    pub(crate) node_bytes: fn(usize) -> usize,
}

macro_rules! table {
    ($engine:ident) => {
        Engine {
            // SAFETY: mm keeps what the entries ask for.
            merge: |mm, ranges| unsafe {
                let call = &mut sksm_call::default();
                let error = $engine::sksm_call_begin(call, mm);
                assert_eq!(error, 0, "a call fails");
                for &(start, end) in ranges {
                    let mut at = start;
                    while at < end {
                        let vma = &raw mut (*mm).vma;
                        let error = $engine::sksm_merge_vma(call, vma, &mut at, end, false);
                        assert_eq!(error, 0, "a merge fails");
                    }
                }
                $engine::sksm_call_end(call);
            },
            // SAFETY: As above.
            folio_free: |folio| unsafe { $engine::sksm_folio_free(folio) },
            // SAFETY: As above.
            withdraw: |folio, vma, addr| unsafe { $engine::sksm_withdraw(folio, vma, addr) },
            // SAFETY: As above.
            unmapped: |folio, vma| unsafe { $engine::sksm_unmapped(folio, vma) },
            // SAFETY: As above.
            swapped: |folio, vma| unsafe { $engine::sksm_swapped(folio, vma) },
            // SAFETY: As above.
            swapped_in: |folio, vma| unsafe { $engine::sksm_swapped_in(folio, vma) },
            // SAFETY: As above.
            folio_sleep: |folio, slot| unsafe { $engine::sksm_folio_sleep(folio, slot) },
            // SAFETY: As above.
            folio_wake: |folio| unsafe { $engine::__sksm_folio_wake(folio) },
            // SAFETY: As above.
            slot_freed: |slot| unsafe { $engine::__sksm_slot_freed(slot) },
            // SAFETY: As above.
            rmap_walk: |folio, rwc| unsafe { $engine::sksm_rmap_walk(folio, from_mut(rwc)) },
            // SAFETY: As above.
            migrate: |new, old| unsafe { $engine::sksm_migrate(new, old) },
            // SAFETY: As above.
            rescue: |folio| unsafe { $engine::sksm_folio_rescue(folio) },
            // SAFETY: As above.
            release: || unsafe { $engine::sksm_release(take_retired()) },
            begin: $engine::probe::begin,
            node_of_link: $engine::probe::node,
            node_folio: $engine::probe::folio,
            node_older: $engine::probe::older,
            node_sample: $engine::probe::sample,
            node_pending: $engine::probe::pending,
            node_saved: $engine::probe::saved,
            node_slot: $engine::probe::slot,
            node_places: $engine::probe::places,
            node_bytes: $engine::probe::bytes,
        }
    };
}

/// As it is.
pub(crate) static ENGINE: Engine = table!(engine);

/// With the mistakes of `mistakes.rs`, of which the world makes one.
pub(crate) static MISTAKEN: Engine = table!(mistaken);
