//! A step that is left out makes the checker fail, and for the right reason.

use std::any::Any;
use std::panic::catch_unwind;

use sksm_model::{Bug, scenario};

/// Bytes or nodes are looked at while somebody else changes them.
const UNSTABLE: &str = "Concurrent read and write accesses";
const WRONG_BYTES: &str = "a process reads what it did not write";
const TOO_MANY: &str = "a page has too many mappings";
const NO_PLACE: &str = "a mapping is missing in the reverse map";

fn message(panic: &(dyn Any + Send)) -> &str {
    let string = panic.downcast_ref::<String>().map(String::as_str);
    string
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default()
}

#[track_caller]
fn fails(bug: Bug, name: &str, why: &str) {
    let scenario = scenario(name);
    match catch_unwind(|| scenario.explore(Some(bug))) {
        Ok(executions) => panic!("{bug:?} is not found in {executions} executions of {name:?}"),
        Err(panic) => {
            let message = message(&*panic);
            assert!(message.contains(why), "{bug:?}, {name:?}: {message}");
        }
    }
}

#[test]
fn withdraw_ignores_references() {
    fails(
        Bug::WithdrawIgnoresReferences,
        "merger, write by the only user",
        WRONG_BYTES,
    );
}

#[test]
fn withdraw_without_freeze() {
    fails(
        Bug::WithdrawWithoutFreeze,
        "merger, write by the only user",
        UNSTABLE,
    );
}

#[test]
fn withdraw_waits_for_lock() {
    fails(
        Bug::WithdrawWaitsForLock,
        "write by the only user, migration",
        "deadlock",
    );
}

#[test]
fn find_without_recheck() {
    fails(
        Bug::FindWithoutRecheck,
        "merger, write by the only user",
        UNSTABLE,
    );
}

#[test]
fn publish_without_second_look() {
    fails(
        Bug::PublishWithoutSecondLook,
        "two mergers, equal pages",
        "there are more or fewer merged pages",
    );
}

#[test]
fn published_read_too_late() {
    fails(
        Bug::PublishedReadTooLate,
        "two mergers, equal pages",
        "there are more or fewer merged pages",
    );
}

#[test]
fn crowd_rises_late() {
    fails(
        Bug::CrowdRisesLate,
        "two mergers, equal pages of a crowd",
        "there are more or fewer merged pages",
    );
}

#[test]
fn place_not_entered() {
    fails(Bug::PlaceNotEntered, "merger, migration", NO_PLACE);
}

#[test]
fn free_without_grace_period() {
    fails(
        Bug::FreeWithoutGracePeriod,
        "merger, exit of the only user",
        UNSTABLE,
    );
}

#[test]
fn prune_ignores_pending() {
    fails(
        Bug::PruneIgnoresPending,
        "two mergers, a merged page with places to drop",
        NO_PLACE,
    );
}

#[test]
fn migrate_keeps_old_mapping() {
    fails(
        Bug::MigrateKeepsOldMapping,
        "merger, migration",
        "a freed node is touched",
    );
}

#[test]
fn replace_without_entry_check() {
    fails(
        Bug::ReplaceWithoutEntryCheck,
        "merger, write to the same page",
        WRONG_BYTES,
    );
}

#[test]
fn protect_ignores_references() {
    fails(
        Bug::ProtectIgnoresReferences,
        "merger, write to the same page through a pin",
        UNSTABLE,
    );
}

#[test]
fn walk_without_lock() {
    fails(
        Bug::WalkWithoutLock,
        "two mergers, reclaim's look",
        UNSTABLE,
    );
}

#[test]
fn room_ignores_pending() {
    fails(
        Bug::RoomIgnoresPending,
        "two mergers, a merged page with room for one",
        TOO_MANY,
    );
}

#[test]
fn room_without_second_look() {
    fails(
        Bug::RoomWithoutSecondLook,
        "two mergers, a merged page with room for one",
        TOO_MANY,
    );
}

#[test]
fn failure_keeps_node() {
    fails(
        Bug::FailureKeepsNode,
        "merger, memory failure",
        "the index is not empty",
    );
}

#[test]
fn replace_maps_failed() {
    fails(
        Bug::ReplaceMapsFailed,
        "merger, memory failure",
        "a page that has failed is mapped",
    );
}

#[test]
fn settle_without_rcu() {
    fails(Bug::SettleWithoutRcu, "merger, memory failure", UNSTABLE);
}
