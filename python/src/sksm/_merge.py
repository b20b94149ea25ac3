"""Merging this process's own memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Callable, Iterable, List, Optional, Union

from . import _buffer, _libc
from ._counts import counts_of, grown
from ._errors import Denied, Error, Gone, of_advice
from ._handshake import MADV_MERGE
from ._mappings import Kind, Mapping, mappings_of
from ._merged import LeftAlone, Merged
from ._region import Region
from ._support import require

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def merge(buffer: ReadableBuffer) -> Merged:
    """Merges the whole pages of a buffer: bytes, bytearray, array.array, a numpy array that is contiguous, a memoryview of one.

    Bytes in a page that is only partly the buffer's stay alone, so a small buffer has nothing to merge. What is locked, left out
    of core dumps or wiped on fork is left alone, as it may hold secrets; so is shared memory, which never merges.

    Raises Unsupported where the kernel does not merge; NoMemory and Interrupted, which leave some of it as it was; Unreadable
    without /proc, by which secrets are told; ValueError for a buffer that is not contiguous.
    """
    with _buffer.exported(buffer) as region:
        require()
        pages = region.inward()
        if pages is None:
            return Merged(0, reason=f"the buffer of {region.length} bytes holds no whole page")
        parts: List[Mapping] = []
        for mapping in mappings_of("self"):
            if pages.within(mapping.region) is not None:
                parts.append(mapping)
        return advise("self", parts, own, pages, "no page of the buffer has been written")


def merge_heap(min_length: int = 0) -> Merged:
    """Merges all private anonymous memory of this process in mappings of at least so many bytes: Python's objects, malloc's
    arenas, numpy's arrays.

    What is locked, left out of core dumps or wiped on fork is left alone, as it may hold secrets.

    Raises Unsupported where the kernel does not merge; Unreadable without /proc; else what the kernel gave if it refused all. What
    it refused of some is in Merged.refused.
    """
    require()
    parts = [
        mapping
        for mapping in mappings_of("self")
        if mapping.kind is Kind.HEAP and mapping.region.length >= min_length
    ]
    return advise("self", parts, own, None, f"there is no private memory in mappings of {min_length} bytes")


def own(region: Region) -> int:
    """Merges a range of this process."""
    _libc.madvise(region.start, region.length, MADV_MERGE)
    return region.length


def advise(
    pid: Union[int, str],
    mappings: Iterable[Mapping],
    call: Callable[[Region], int],
    only: Optional[Region],
    nothing: str,
) -> Merged:
    """Merges those of these mappings that may be, and tells what came of it; `nothing` says why there was nothing to do."""
    left_alone: List[LeftAlone] = []
    regions: List[Region] = []
    for mapping in mappings:
        region = mapping.region if only is None else mapping.region.within(only)
        if region is None:
            continue
        if mapping.unmergeable is not None:
            # Of empty mappings nobody needs to know, unless it was these that were asked for.
            if mapping.anonymous > 0 or only is not None:
                left_alone.append(LeftAlone(region, mapping.unmergeable))
        elif mapping.anonymous > 0:
            regions.append(region)
    if not regions:
        whys = sorted({part.why for part in left_alone})
        return Merged(0, left_alone=tuple(left_alone), reason="; ".join(whys) or nothing)
    before = counts_of(pid)
    start = time.monotonic()
    advised = 0
    refused: List[Error] = []
    for region in regions:
        try:
            advised += call(region)
        except OSError as error:
            meaning = of_advice(error, region)
            # Of the others it would say the same.
            if isinstance(meaning, (Denied, Gone)):
                raise meaning from None
            refused.append(meaning)
    if advised == 0 and refused:
        raise refused[0]
    seconds = time.monotonic() - start
    now = counts_of(pid)
    saved, published = grown(now.saved, before.saved), grown(now.published, before.published)
    zeroed, passed_over = grown(now.zeroed, before.zeroed), grown(now.passed_over, before.passed_over)
    reason = ""
    # Passed over is counted for the whole machine.
    more = any(growth and growth > 0 for growth in (saved, published, zeroed))
    if passed_over is not None and passed_over >= advised and not more:
        reason = (
            "the kernel passed over as much as it was asked for: the process may be in no merge domain, or not dumpable when "
            "another one asked, or others were passed over meanwhile; `sksm doctor` says which domain it is in"
        )
    return Merged(
        advised,
        saved,
        published,
        zeroed,
        passed_over,
        tuple(left_alone),
        tuple(refused),
        seconds,
        reason,
    )
