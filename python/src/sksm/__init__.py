"""Merge equal memory pages at once.

A kernel with SKSM offers one more advice to madvise(2), ``MADV_MERGE``. When the call returns, every page of the range that has a
twin in the same merge domain shares one physical page with it. A later write is an ordinary copy-on-write fault, so merging never
changes what memory contains::

    import sksm

    table = load()
    if sksm.support() is sksm.Support.MERGE:
        print(sksm.freeze_and_merge())

Do not merge secrets: the time that a merge or a write takes, pagemap, smaps and counters tell whether some other process of the
merge domain holds the same content. What is locked, left out of core dumps or wiped on fork is left alone.
"""

from ._errors import (
    Denied,
    Error,
    Gone,
    Hole,
    Interrupted,
    Invalid,
    NoMemory,
    NotAProcess,
    Undecided,
    Unreadable,
    Unsupported,
)
from ._freeze import Frozen, freeze_and_merge
from ._mappings import Kind
from ._merge import merge, merge_heap
from ._merged import LeftAlone, Merged
from ._process import merge_process
from ._region import Region
from ._support import Support, support

__version__ = "0.1.0"

__all__ = [
    "Denied",
    "Error",
    "Frozen",
    "Gone",
    "Hole",
    "Interrupted",
    "Invalid",
    "Kind",
    "LeftAlone",
    "Merged",
    "NoMemory",
    "NotAProcess",
    "Region",
    "Support",
    "Undecided",
    "Unreadable",
    "Unsupported",
    "freeze_and_merge",
    "merge",
    "merge_heap",
    "merge_process",
    "support",
]
