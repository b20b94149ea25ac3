"""What the running kernel offers for sharing equal pages."""

from __future__ import annotations

import enum
from typing import Optional, Tuple

from . import _handshake, _libc
from ._errors import Undecided, undecided, unsupported

_MADV_MERGEABLE = 12


class Support(enum.Enum):
    """What the running kernel offers."""

    #: ``MADV_MERGE``: pages are merged when the call returns.
    MERGE = "MADV_MERGE"
    #: Only KSM: a kernel thread may find and merge pages some time later, if a program asks for it and the administrator has
    #: started it. Nothing in this package does.
    KSM = "KSM"
    #: Neither; always so on systems other than Linux.
    NONE = "none"


_answer: Optional[Support] = None


def support() -> Support:
    """What the running kernel offers. Asks it once, and remembers the answer for this process and its children.

    The number of ``MADV_MERGE`` is not believed, as another kernel may have given it to another advice: the engine must name it in
    sysfs or, where that cannot be seen, be in proc where that can, and a page that is mapped for it and merged must keep its bytes.
    Until that has been shown, no function of this package gives the advice.

    It says what the kernel knows, not what it will do: with ``sksm=off``, or for a process in no merge domain, calls are taken
    and nothing merges. A program that puts itself under a seccomp filter that kills asks before.
    """
    return _ask()[0]


def require() -> None:
    """Refuses a merge unless the kernel has shown that it merges.

    Raises Unsupported, or Undecided where that cannot be found out.
    """
    answer, doubt = _ask()
    if doubt is not None:
        raise doubt
    if answer is not Support.MERGE:
        raise unsupported(answer)


def _ask() -> Tuple[Support, Optional[Undecided]]:
    """What the kernel offers, and why that is not certain. What is, is remembered."""
    global _answer
    if _answer is not None:
        return _answer, None
    # An emulated kernel (QEMU's user mode, gVisor) may wave through any advice for an empty range.
    if not _libc.LINUX or _handshake.accepts(0x7FFF_FFFF):
        _answer = Support.NONE
        return _answer, None
    doubt = None
    try:
        merges = _handshake.merges()
    except _handshake.Doubt as error:
        merges, doubt = False, undecided(error.errno)
    if merges:
        answer = Support.MERGE
    else:
        answer = Support.KSM if _handshake.accepts(_MADV_MERGEABLE) else Support.NONE
    if doubt is None:
        _answer = answer
    return answer, doubt
