"""What can fail, on what range, and what to do about it."""

from __future__ import annotations

import errno as numbers
import os
from typing import TYPE_CHECKING, Optional

from ._region import Region

if TYPE_CHECKING:
    from ._support import Support


class Error(OSError):
    """What failed. ``errno`` is the kernel's number, ``region`` the range of addresses if it was about one."""

    region: Optional[Region]

    def __init__(self, errno: int, text: str, region: Optional[Region] = None) -> None:
        super().__init__(errno, text)
        self.text = text
        self.region = region

    def __str__(self) -> str:
        return self.text


class Unsupported(Error):
    """This kernel does not know ``MADV_MERGE``, or has not shown that it means merging by it. Nothing was done."""

    #: What this kernel offers instead.
    instead: Support


def unsupported(instead: Support) -> Unsupported:
    text = (
        "this kernel has no MADV_MERGE; boot a kernel with CONFIG_SKSM, and until then go on without: "
        "`if sksm.support() is sksm.Support.MERGE`"
    )
    error = Unsupported(numbers.EINVAL, text)
    error.instead = instead
    return error


class Undecided(Error):
    """Whether this kernel merges cannot be found out. Nothing was done; it may merge all the same: where a seccomp filter refuses to
    ask, for whoever is not under it, else later.
    """


#: For want of something that may be there later.
_LATER = (numbers.ENOMEM, numbers.EAGAIN, numbers.EINTR, numbers.EMFILE, numbers.ENFILE)


def undecided(errno: int) -> Undecided:
    if errno in _LATER:
        why = " now, without memory or a free descriptor for it; nothing was done, call again later"
    else:
        why = (
            ": something refuses to ask it, as a seccomp filter does; nothing was done, have the filter let madvise with the "
            "advice 26 pass"
        )
    return Undecided(errno, "whether this kernel merges cannot be found out" + why)


class Invalid(Error):
    """Addresses that no process can have, or that are not whole pages."""


class Hole(Error):
    """Some of the range is not mapped. The mapped parts are done."""


class NoMemory(Error):
    """The kernel found no memory for its bookkeeping. What was done so far stays so."""


class Interrupted(Error):
    """A signal ended the call. What was done so far stays so."""


class Denied(Error):
    """The caller may not advise the other process."""


class Gone(Error):
    """The process has ended, or never was."""


class NotAProcess(Error):
    """The number is that of a thread, or of a thread of the kernel's own."""


class Unreadable(Error):
    """A file of the kernel's could not be read or understood."""


_MEANING = {
    numbers.EINVAL: (Invalid, "{} must be whole pages within the address space"),
    numbers.EFAULT: (Invalid, "{} must be whole pages within the address space"),
    numbers.ENOMEM: (
        Hole,
        "part of {} is not mapped; the mapped parts are done, leave the rest out",
    ),
    numbers.EAGAIN: (
        NoMemory,
        "the kernel is out of memory for {}; what was done so far stays so, try again later",
    ),
    numbers.EINTR: (
        Interrupted,
        "a signal ended the call for {}; what was done so far stays so, call again",
    ),
    numbers.EPERM: (
        Denied,
        "not allowed to advise {} of the other process: run as root or with CAP_SYS_NICE, or have the process merge itself",
    ),
    numbers.EACCES: (
        Denied,
        "not allowed to advise {} of the other process: run as root, or with the rights that ptrace asks for",
    ),
    numbers.ESRCH: (Gone, "the process has ended: {} has gone with it"),
}


def of_advice(error: OSError, region: Region) -> Error:
    """The meaning of an error number after the kernel refused a merge."""
    number = error.errno or 0
    kind, text = _MEANING.get(number, (Error, "the call for {} failed: " + os.strerror(number)))
    return kind(number, text.format(region), region)


def of_reading(error: OSError, file: str) -> Error:
    """The meaning of an error number after a file of the kernel's could not be read."""
    number = error.errno or numbers.EIO
    hint = ""
    if number in (numbers.EPERM, numbers.EACCES):
        hint = "; run as root, or with CAP_SYS_PTRACE"
    elif number == numbers.ENOENT:
        hint = "; is /proc mounted here?"
    return Unreadable(number, f"cannot read {file}: {os.strerror(number)}{hint}")
