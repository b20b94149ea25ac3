"""What the kernel counts: by that is told what a merge has brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

from ._libc import PAGE


@dataclass(frozen=True)
class Counts:
    """All in bytes; None where the kernel does not count it, or proc or sysfs cannot be read."""

    #: Memory of the process that merges redirected to another page, which is what they save of it.
    saved: Optional[int]
    #: Its memory that became merged pages, for others to share.
    published: Optional[int]
    #: Its memory that became the zero page.
    zeroed: Optional[int]
    #: Addresses that advice of all processes has passed over since boot.
    passed_over: Optional[int]


def counts_of(pid: Union[int, str]) -> Counts:
    """What merging has done to a process so far; "self" is this one."""
    return parse(_read(f"/proc/{pid}/ksm_stat"), _read("/sys/kernel/mm/sksm/pages_refused"))


def parse(ksm_stat: bytes, pages_refused: bytes) -> Counts:
    lines = (line.replace(b":", b" ").split() for line in ksm_stat.split(b"\n"))
    named = {words[0]: words[1] for words in lines if len(words) == 2}

    def size(text: Optional[bytes]) -> Optional[int]:
        try:
            pages = int(text or b"")
        except ValueError:
            return None
        # A count that has gone below zero is printed without its sign.
        return (pages - 2**64 if pages >= 2**63 else pages) * PAGE

    return Counts(
        saved=size(named.get(b"sksm_merged_pages")),
        published=size(named.get(b"sksm_published_pages")),
        zeroed=size(named.get(b"ksm_zero_pages")),
        passed_over=size(pages_refused.strip()),
    )


def grown(now: Optional[int], before: Optional[int]) -> Optional[int]:
    return None if now is None or before is None else now - before


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
