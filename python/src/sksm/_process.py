"""Merging another process's memory."""

from __future__ import annotations

import errno
import os
from typing import Collection

from . import _libc
from ._errors import Gone, of_reading
from ._handshake import MADV_MERGE
from ._mappings import Kind, check_process, mappings_of
from ._merge import advise, own
from ._merged import Merged
from ._region import Region
from ._support import require

#: Of more than 2 GiB less a page the kernel leaves out the rest, and says nothing.
_BYTES_PER_CALL = 1 << 30


def merge_process(pid: int, kinds: Collection[Kind] = (Kind.TEXT, Kind.DATA, Kind.HEAP)) -> Merged:
    """Merges all memory of these kinds of a process, which may be this one.

    Another process takes root, or CAP_SYS_NICE and the rights that ptrace asks for. Even then the kernel passes over processes
    that are not dumpable and over those in no merge domain, which Merged.passed_over tells. What is locked, left out of core dumps
    or wiped on fork is left alone, as it may hold secrets.

    Raises Unsupported where the kernel does not merge; Denied without the rights; Gone if there is no such process; NotAProcess
    for a thread; Unreadable without /proc or the right to read its memory map; else what the kernel gave if it refused all. What it
    refused of some is in Merged.refused.
    """
    require()
    if pid == os.getpid():
        parts = [mapping for mapping in mappings_of("self") if mapping.kind in kinds]
        return advise("self", parts, own, None, "there is no private memory of these kinds")
    check_process(pid)
    try:
        pidfd = _libc.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise Gone(errno.ESRCH, f"process {pid} has ended") from None
        raise of_reading(error, f"a pidfd of process {pid}") from None
    # If the number has become another process's since, the kernel refuses: the descriptor is that of the first.
    try:

        def other(region: Region) -> int:
            return _advise(pidfd, region)

        parts = [mapping for mapping in mappings_of(pid) if mapping.kind in kinds]
        return advise(pid, parts, other, None, f"process {pid} has no private memory of these kinds")
    finally:
        os.close(pidfd)


def _advise(pidfd: int, region: Region) -> int:
    """Merges a range in as many calls as it takes; a call may take less than it was asked for."""
    done = 0
    while done < region.length:
        length = min(region.length - done, _BYTES_PER_CALL)
        count = _libc.process_madvise(pidfd, region.start + done, length, MADV_MERGE)
        if count == 0:
            # No kernel says so; to ask again might never end.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += count
    return done
