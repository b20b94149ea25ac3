"""Merging what the garbage collector would otherwise write to."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Optional

from ._mappings import mappings_of
from ._merge import merge_heap
from ._merged import Merged
from ._support import require


@dataclass(frozen=True)
class Frozen:
    """What freeze_and_merge() did."""

    #: Objects that the collector found unreachable before.
    collected: int
    #: Objects that it will look at no more; 0 also if nothing was merged, and they were given back.
    frozen: int
    merged: Merged

    def __str__(self) -> str:
        return f"{self.merged}; {self.frozen} objects frozen, {self.collected} unreachable ones found before"


def freeze_and_merge() -> Frozen:
    """Collects garbage, has the collector leave alone whatever is there now (gc.freeze), and merges the heap.

    A collection writes into every object that it looks at, which takes shared pages back. Objects in cycles that are frozen and
    become garbage later are never freed: call it once, when everything is loaded and no request is under way; to merge again is
    merge_heap().

    Raises what merge_heap() raises. Where nothing is merged nothing stays frozen either, unless something was before: the
    collector cannot tell the two.
    """
    require()
    # What keeps a merge from its work is found before anything is frozen.
    mappings_of("self")
    before = gc.get_freeze_count()
    collected = gc.collect()
    gc.freeze()
    frozen = gc.get_freeze_count() - before
    merged: Optional[Merged] = None
    try:
        merged = merge_heap()
    finally:
        if before == 0 and (merged is None or merged.reason):
            gc.unfreeze()
            frozen = 0
    return Frozen(collected, frozen, merged)
