"""Ranges of addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ._libc import PAGE


@dataclass(frozen=True)
class Region:
    """A range of addresses."""

    #: The first address.
    start: int
    #: The number of bytes.
    length: int

    @property
    def end(self) -> int:
        """The address after the last one."""
        return self.start + self.length

    def inward(self, page: int = PAGE) -> Optional[Region]:
        """The whole pages inside; None if there is no whole page."""
        start = -(-self.start // page) * page
        end = self.end // page * page
        return Region(start, end - start) if start < end else None

    def within(self, other: Region) -> Optional[Region]:
        """What both have in common; None if that is nothing."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Region(start, end - start) if start < end else None

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}"
