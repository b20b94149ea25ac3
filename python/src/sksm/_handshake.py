"""Whether the kernel's advice of the number MADV_MERGE is the one that merges.

Another kernel may have given the number to an advice that throws pages away, and does not say so: of an empty range it takes any
advice that it knows. Where sysfs can be seen, the engine says there which number is its own, and that is the answer. Elsewhere, and
with an engine that does not say it, nothing is advised before

* the kernel has not denied it: where sysfs can be seen it has the engine's directory, else where proc can be seen the engine's
  counts of a process, beside those of KSM, without which there is no engine;
* a page of the caller's own has been through it: it keeps its bytes, can still be read, and is still one mapping with its
  neighbours. An advice that marks mappings for later (left out of forks, wiped in them) parts them.

Where neither sysfs nor proc can be seen, as in a chroot, the page is reclaimed as well, which is when a page that was freed lazily
loses its bytes. What a filter answers instead of the kernel tells nothing, nor what fails for want of memory or a descriptor: unless
sysfs or proc deny the engine, that leaves it undecided. The Rust library does the same (crates/sksm/src/linux/handshake.rs), with a
page of the same bytes.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from typing import Optional, Union

from . import _libc

#: The advice that asks madvise(2) or process_madvise(2) to merge. The only place where this number stands.
MADV_MERGE = 26

_MADV_PAGEOUT = 21
_SYSFS_MAGIC = 0x62656572
_PROC_SUPER_MAGIC = 0x9FA0

#: What the kernel says of an advice for something else, as of a page that it is not meant for.
_OTHER = (errno.EINVAL, errno.EBADF, errno.EIO, errno.EFAULT)


class Doubt(Exception):
    """It cannot be found out. ``errno`` is the number of what stood against it."""

    def __init__(self, number: Optional[int]) -> None:
        super().__init__(number)
        self.errno = number or errno.EAGAIN


def accepts(advice: int) -> bool:
    """Whether an advice is known."""
    return _known(advice) == 0


def _known(advice: int) -> int:
    """The same: 0, or the error number. The range is empty, so no advice can touch memory."""
    try:
        _libc.madvise(0, 0, advice)
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def merges() -> bool:
    """Whether the advice is the right one. Raises Doubt."""
    refused = _known(MADV_MERGE)
    # What kernels say of an advice that they do not know.
    if refused == errno.EINVAL:
        return False
    named = _named()
    if named in (Named.ABSENT, Named.OTHER):
        return False
    # Something else than the kernel has answered: a seccomp filter, as a rule.
    if refused:
        raise Doubt(refused)
    if named is Named.RIGHT:
        return True
    try:
        probe = Probe()
    except OSError as error:
        raise Doubt(error.errno) from None
    try:
        return probe.keeps(reclaim=named is Named.UNSEEN)
    finally:
        probe.unmap()


class Named(enum.Enum):
    """What the kernel says of the engine."""

    #: Its advice has this number.
    RIGHT = "right"
    #: Its advice has another one.
    OTHER = "other"
    #: It is there.
    ENGINE = "engine"
    #: It is not.
    ABSENT = "absent"
    #: Nothing can be seen that would tell.
    UNSEEN = "unseen"


def _named() -> Named:
    try:
        if _libc.file_system(b"/sys/kernel/mm/sksm") == _SYSFS_MAGIC:
            try:
                number = int(_libc.read(b"/sys/kernel/mm/sksm/advice"))
            except (OSError, ValueError):
                return Named.ENGINE
            return Named.RIGHT if number == MADV_MERGE else Named.OTHER
    except OSError as error:
        if error.errno == errno.ENOENT and _is_on(b"/sys/kernel/mm", _SYSFS_MAGIC):
            return Named.ABSENT
    counts = b"/proc/self/ksm_stat"
    try:
        if _libc.file_system(counts) != _PROC_SUPER_MAGIC:
            return Named.UNSEEN
    except OSError as error:
        # A kernel with the engine has KSM, and so this file: where proc is there, its absence tells.
        absent = error.errno == errno.ENOENT and _is_on(b"/proc/self/stat", _PROC_SUPER_MAGIC)
        return Named.ABSENT if absent else Named.UNSEEN
    try:
        text = _libc.read(counts)
    except OSError:
        return Named.UNSEEN
    if b"ksm_" not in text:
        return Named.UNSEEN
    return Named.ENGINE if b"sksm_" in text else Named.ABSENT


def _is_on(path: bytes, magic: int) -> bool:
    try:
        return _libc.file_system(path) == magic
    except OSError:
        return False


def pattern(length: int) -> bytes:
    """No zeros, and no page of one byte. The same in every process: those of one domain try the advice on one page."""
    return bytes((at * 31 & 0xFF) ^ (at >> 8 & 0xFF) | 1 for at in range(length))


class Probe:
    """A private anonymous page to try the advice on, between two others."""

    def __init__(self) -> None:
        self._length = 3 * _libc.PAGE
        self._start = _libc.mmap_anonymous(self._length)
        self.page = self._start + _libc.PAGE
        ctypes.memmove(self.page, pattern(_libc.PAGE), _libc.PAGE)

    def unmap(self) -> None:
        _libc.munmap(self._start, self._length)

    def keeps(self, reclaim: bool) -> bool:
        """Gives the advice, and looks whether it has left the page as it was. Raises Doubt."""
        try:
            _libc.madvise(self.page, _libc.PAGE, MADV_MERGE)
        except OSError as error:
            if error.errno in _OTHER:
                return False
            # Without memory for it, ended by a signal, or refused by a filter.
            raise Doubt(error.errno) from None
        if not self.is_one_mapping():
            return False
        if reclaim:
            try:
                _libc.madvise(self.page, _libc.PAGE, _MADV_PAGEOUT)
            except OSError as error:
                raise Doubt(error.errno) from None
        return self.has_its_bytes()

    def is_one_mapping(self) -> bool:
        """To make it grow where it is fails in its own way if it is more than one."""
        longer = self._length + _libc.PAGE
        try:
            _libc.grow(self._start, self._length, longer)
        except OSError as error:
            return error.errno != errno.EFAULT
        self._length = longer
        return True

    def has_its_bytes(self) -> bool:
        """Has the kernel read the page, for which it gives an error where this program would end by a signal. Raises Doubt."""
        try:
            end, start = os.pipe()
        except OSError as error:
            raise Doubt(error.errno) from None
        try:
            os.set_blocking(start, False)
            os.set_blocking(end, False)
            written = _libc.write(start, self.page, _libc.PAGE)
            read = os.read(end, _libc.PAGE)
        except OSError as error:
            if error.errno == errno.EFAULT:
                return False
            raise Doubt(error.errno) from None
        finally:
            os.close(start)
            os.close(end)
        if written != _libc.PAGE or len(read) != _libc.PAGE:
            raise Doubt(errno.EAGAIN)
        return read == pattern(_libc.PAGE)
