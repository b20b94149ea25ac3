/// A step of the protocol left out. Each must make the checker fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Withdrawing asks for one mapping and not for the references.
    WithdrawIgnoresReferences,
    /// Withdrawing looks at the reference count, and does not freeze it.
    WithdrawWithoutFreeze,
    /// A lookup trusts the node's folio without asking whom the folio names.
    FindWithoutRecheck,
    /// Publishing does not look again under the mutex.
    PublishWithoutSecondLook,
    /// What the shard has published is asked after the first look, and not before.
    PublishedReadTooLate,
    /// A page of a crowd is counted after it was published.
    CrowdRisesLate,
    /// A page that is found is mapped before its place is in the reverse map.
    PlaceNotEntered,
    /// Nodes are freed without waiting for readers of the index.
    FreeWithoutGracePeriod,
    /// Dropping dead places drops those that are about to be mapped.
    PruneIgnoresPending,
    /// The old folio keeps naming the node after migration.
    MigrateKeepsOldMapping,
    /// Replacing does not look whether the entry is still the one that was compared.
    ReplaceWithoutEntryCheck,
    /// Write-protecting does not compare references with mappings.
    ProtectIgnoresReferences,
    /// The reverse map of a page that was anonymous a moment ago is walked without its lock.
    WalkWithoutLock,
    /// Who looks for room does not count the places that others are about to map.
    RoomIgnoresPending,
    /// Room is looked for by a lookup, and not again under the folio lock.
    RoomWithoutSecondLook,
    /// A page that has failed keeps its node.
    FailureKeepsNode,
    /// Replacing does not look whether the merged page has failed since it was found.
    ReplaceMapsFailed,
    /// A place is settled without an RCU read section, as if the reference kept the node.
    SettleWithoutRcu,
    /// Withdrawing waits for the folio lock, with the page table locked.
    WithdrawWaitsForLock,
}
