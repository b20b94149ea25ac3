//! A step that is left out makes the checker fail, and for the right reason.

use std::any::Any;
use std::panic::catch_unwind;

use sksm_model::{scenario, Planted, MISTAKES};

/// Bytes or nodes are looked at while somebody else changes them.
const UNSTABLE: &str = "Causality violation";
const WRONG_BYTES: &str = "a process reads what it did not write";
const TOO_MANY: &str = "a page has too many mappings";
const NO_PLACE: &str = "a mapping is missing in the reverse map";
const FREED: &str = "freed memory is touched";
const PAGES: &str = "there are more or fewer merged pages";
const TWICE: &str = "a key stands in the table twice";
const SAVED: &str = "saved pages are miscounted";
const ALONE: &str = "a page is said to save more than its mappings but one";
const AWAITED: &str = "a mapping is said to come that does not";
const ASTRAY: &str = "a chain ends as another";
/// The engine asserts it itself.
const OTHER_SHARD: &str = if cfg!(debug_assertions) {
    "guard.is_of"
} else {
    UNSTABLE
};

fn message(panic: &(dyn Any + Send)) -> &str {
    let string = panic.downcast_ref::<String>().map(String::as_str);
    string
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default()
}

#[track_caller]
fn fails(planted: Planted, name: &str, why: &str) {
    let scenario = scenario(name);
    match catch_unwind(|| scenario.explore(Some(planted))) {
        Ok(executions) => panic!("it is not found in {executions} executions of {name:?}"),
        Err(panic) => {
            let message = message(&*panic);
            assert!(message.contains(why), "{name:?}: {message}");
        }
    }
}

macro_rules! planted {
    ($($test:ident: $mistake:literal, $scenario:literal, $why:expr;)*) => {
        $(
            #[test]
            fn $test() {
                fails(Planted::engine($mistake), $scenario, $why);
            }
        )*

        /// The mistakes that are looked for.
        const LOOKED_FOR: &[&str] = &[$($mistake),*];
    };
}

planted! {
    withdraw_ignores_references: "withdraw ignores references", "merger, write by the only user", WRONG_BYTES;
    withdraw_without_freeze: "withdraw compares references and does not freeze them", "merger, write by the only user", WRONG_BYTES;
    withdraw_waits: "withdraw waits for the folio lock", "write by the only user, migration", "deadlock";
    lookup_without_owner: "a found page is not asked whose it is", "merger, write by the only user", UNSTABLE;
    index_before_pointer: "the index comes before the folio's pointer", "two mergers, equal pages", PAGES;
    pointer_is_kept: "a page that is not published after all keeps the pointer", "two mergers, equal pages", "memory is freed twice";
    unpublished: "a node that was not published is freed at once", "two mergers, exit of a child of the one", UNSTABLE;
    migration_keeps_pointer: "the old folio keeps the pointer after migration", "merger, migration", FREED;
    migration_keeps_folio: "the node keeps the old folio after migration", "merger, migration", "the node points elsewhere";
    other_numa_node: "a page of another NUMA node stays in the index", "merger, migration to another node", "a node is on another NUMA node";
    found_on_other_node: "a found page is not asked for its NUMA node", "merger, migration to another node", "pages of two NUMA nodes merge";
    failure_keeps_pointer: "a failed folio keeps the pointer", "merger, memory failure", FREED;
    retired_in_index: "a retired node stays in the index", "merger, exit of the only user", FREED;
    leaves_late: "a node leaves the index after it was handed over", "the newest of three copies and the one behind it leave", UNSTABLE;
    no_place: "a place is not entered", "merger, migration", NO_PLACE;
    pending_places: "places are dropped that are about to be mapped", "two mergers, a merged page with places to drop", NO_PLACE;
    swapped_places: "places of swap entries are dropped", "merger, reclaim", NO_PLACE;
    places_of_entries: "places of swap entries are dropped", "merger into a page that woke, swap-in", NO_PLACE;
    live_places: "places are dropped unseen", "two mergers, a merged page with places to drop", NO_PLACE;
    tree_lock: "trees of VMAs are walked without their lock", "exit of a mapper, migration", UNSTABLE;
    room: "room is looked for without the folio lock only", "two mergers, a merged page with room for one", TOO_MANY;
    pending_users: "who is about to map a page is no user", "two mergers, a merged page with room for one", TOO_MANY;
    stays_pending: "a page that is not mapped after all stays a user", "merger, write to the same page", AWAITED;
    settled_early: "who maps a page is no user before the mapping is counted", "two mergers, a merged page with room for one", TOO_MANY;
    settled_without_rcu: "a node is told without RCU that its page is not mapped", "merger, memory failure", UNSTABLE;
    first_place: "the first place is the merger's", "two mergers, parent and child", NO_PLACE;
    swap_entries: "a page with swap entries is published", "merger of a page that did not sleep, swap-in beside it", NO_PLACE;
    bytes: "bytes are not compared", "two mergers, equal samples, other bytes", WRONG_BYTES;
    domain: "the domain is no part of the key", "two mergers, two domains", "domains meet";
    other_shard: "the hash of all bytes says nothing of the shard", "exits of pages of two shards", OTHER_SHARD;
    published_meanwhile: "what was published meanwhile does not matter", "two mergers, equal pages", TWICE;
    published_late: "what was published is asked after the search", "two mergers, equal pages", TWICE;
    counted_early: "a page is counted before it is published", "two mergers, equal pages", TWICE;
    counted_relaxed: "a page is counted without release", "two mergers, equal pages", TWICE;
    on_their_way_out: "pages on their way out are taken for equal", "merger, migration of another with the sample", "copies differ";
    no_crowd: "nobody asks for a crowd", "two mergers of a crowd, the first with the sample leaves", PAGES;
    late_crowd: "a crowd grows after its page was published", "two mergers of a crowd, the first with the sample leaves", PAGES;
    crowd_gone: "a crowd that has gone meanwhile does not matter", "two mergers, others with the same sample leave", "a crowd is miscounted";
    not_first: "a copy is published as if nothing stood there", "two mergers of a copy", TWICE;
    crowd_stays: "who leaves a crowd does not say so", "two mergers, others with the same sample leave", "a crowd is miscounted";
    crowd_freed: "a crowd is freed at once", "two mergers, others with the same sample leave", UNSTABLE;
    no_shard_lock: "a shard has no lock", "the newest of three copies and the one behind it leave", UNSTABLE;
    newer_stale: "a newer copy still leads to one that leaves", "the newest of three copies and the one behind it leave", UNSTABLE;
    older_stale: "an older copy does not know that it is the newest now", "the newest of three copies and the one behind it leave", UNSTABLE;
    all_leave: "the newest copy takes the older ones out with it", "merger, the only copy with room leaves", PAGES;
    newer_unknown: "an older copy does not know of a newer one", "merger, an older copy leaves", "what leaves the table is not in it";
    no_grace_period: "nodes are freed without a grace period", "merger, exit of the only user", UNSTABLE;
    older_asleep: "a page falls asleep with the copies behind it", "merger that strays to a copy that sleeps, reclaim in another domain", FREED;
    asleep_in_index: "a page falls asleep in the index", "merger, reclaim of the only user", ASTRAY;
    slot_freed: "a page sleeps on when its slot is freed", "two exits with the slot", "a node sleeps under a slot that is free";
    freed_stays: "a page whose slot is freed stays in the table", "two exits with the slot", FREED;
    wakes_in_table: "a page that wakes stays in the table", "two swap-ins of a sleeping page", ASTRAY;
    not_restored: "a page that wakes is not found again", "two swap-ins of a sleeping page", PAGES;
    not_asked_who: "a page that wakes does not look who stands there", "swap-in, merger", TWICE;
    not_asked_what: "a page that wakes does not look which content stands there", "swap-in where another content stands, merger", TWICE;
    wakes_elsewhere: "a page that wakes keeps its old folio", "two swap-ins of a sleeping page", "the node points elsewhere";
    awaited_asleep: "a failed page that is awaited falls asleep", "merger, memory failure of the page that woke", AWAITED;
    awaited_replaced: "a failed page that is awaited is replaced", "merger, memory failure of a copy", "saved pages are not those of the nodes";
    whosever_copy: "a failed page is replaced whosever the copy is", "memory failure, another copy is written", UNSTABLE;
    protect_ignores_references: "references are not compared before a page is protected", "merger, write to the same page through a pin", UNSTABLE;
    collecting_waits: "collecting waits for folio locks", "merger, reclaim of its own page", "deadlock";
    not_looked_at_again: "a locked page is not looked at again", "two mergers, parent and child", "deadlock";
    whatever_it_maps: "an entry is replaced whatever it maps", "merger, write to the same page", "a freed page is read";
    maps_failed: "a failed page is mapped", "merger, memory failure", "a page that has failed is mapped";
    stays_locked: "a published page stays locked", "two batches, the same pages in other order", "deadlock";
    unbounded: "saved mappings are not bounded by mappings", "exit of the publisher, reclaim's look", ALONE;
    saved_alone: "a mapping is saved also where the others have gone", "merger, write by the only user", ALONE;
    saved_by_fork: "a mapping that comes back is saved though it was not", "two swap-ins of parent and child", "too many pages are said to be saved";
    not_saved_again: "a saved mapping does not come back as one", "two swap-ins of a sleeping page", SAVED;
    first_back: "a mapping that comes back alone is forgotten", "two swap-ins of a sleeping page", SAVED;
    saved_stays: "a page that goes takes its saved mappings with it", "exit of a mapper, migration and a write", "saved pages are not those of the nodes";
}

#[test]
fn failure_keeps_node() {
    let name = "merger, memory failure";
    fails(Planted::FailureKeepsNode, name, "the index is not empty");
}

#[test]
fn any_end() {
    let name = "swap-ins of two pages that sleep";
    fails(Planted::AnyEnd, name, PAGES);
    let name = "merger, reclaim in another domain";
    fails(Planted::AnyEnd, name, TWICE);
}

#[test]
fn walk_without_lock() {
    let name = "two mergers, reclaim's look";
    fails(Planted::WalkWithoutLock, name, UNSTABLE);
}

#[test]
fn every_mistake_is_looked_for() {
    for mistake in MISTAKES {
        assert!(LOOKED_FOR.contains(&mistake.name), "{}", mistake.name);
    }
}
