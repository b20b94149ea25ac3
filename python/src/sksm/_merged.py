"""What a merge did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from ._errors import Error
from ._region import Region


@dataclass(frozen=True)
class LeftAlone:
    """Memory that was asked for and left alone."""

    region: Region
    #: Why, in words.
    why: str


@dataclass(frozen=True)
class Merged:
    """What a merge did. Sizes are bytes.

    The growths are those of the whole process meanwhile, so what its other threads write counts in them; None where the kernel
    does not tell, as without proc.
    """

    #: Addresses that the kernel was asked to merge, and took. That is not what was saved.
    advised: int
    #: By how much more is shared now with pages that were there already: what is saved.
    saved: Optional[int] = None
    #: By how much more is ready to be shared, with nothing saved by it until an equal page comes.
    published: Optional[int] = None
    #: By how much more is the zero page.
    zeroed: Optional[int] = None
    #: Addresses that the kernel passed over, in all processes meanwhile: those of processes in no merge domain, and what their
    #: owners keep to themselves.
    passed_over: Optional[int] = None
    #: What was asked for and left alone, and why.
    left_alone: Tuple[LeftAlone, ...] = ()
    #: Why other ranges were not merged, each error with its range.
    refused: Tuple[Error, ...] = ()
    #: How long it took.
    seconds: float = 0.0
    #: Why nothing was done, in words; empty if something was.
    reason: str = ""

    def __str__(self) -> str:
        """As a line for a log."""
        if self.reason:
            return f"nothing merged: {self.reason}"

        def size(count: Optional[int]) -> str:
            return "?" if count is None else f"{count // 1024} KiB"

        parts = [
            f"merged in {self.seconds:.3f} s: saved {size(self.saved)}, zero pages {size(self.zeroed)}, "
            f"ready to be shared {size(self.published)}, of {size(self.advised)} of addresses"
        ]
        if self.left_alone:
            whys = sorted({part.why for part in self.left_alone})
            length = sum(part.region.length for part in self.left_alone)
            parts.append(f"left alone {size(length)}: {', '.join(whys)}")
        if self.refused:
            parts.append(f"{len(self.refused)} ranges refused: {self.refused[0]}")
        if self.passed_over:
            parts.append(f"the kernel passed over {size(self.passed_over)}, see sksm doctor")
        return "; ".join(parts)
