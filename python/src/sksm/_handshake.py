"""Whether the kernel's advice of the number MADV_MERGE is the one that merges.

Another kernel may have given the number to an advice that throws pages away, and does not say so: of an empty range it takes any
advice that it knows. So nothing is advised before

* the kernel has not denied it: where sysfs can be seen it has the engine's directory, else where proc can be seen the engine's
  counts of a process, beside those of KSM, without which there is no engine;
* a page of the caller's own has been through it: it keeps its bytes, can still be read, and is still one mapping with its
  neighbours. An advice that marks mappings for later (left out of forks, wiped in them) parts them.

Where neither sysfs nor proc can be seen, as in a chroot, the page is reclaimed as well, which is when a page that was freed lazily
loses its bytes. The Rust library does the same (crates/sksm/src/linux/handshake.rs), with a page of the same bytes, where the engine
does not say its number in sysfs.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Optional

from . import _libc

#: The advice that asks madvise(2) or process_madvise(2) to merge. The only place where this number stands.
MADV_MERGE = 26

_MADV_PAGEOUT = 21
_SYSFS_MAGIC = 0x62656572
_PROC_SUPER_MAGIC = 0x9FA0


def accepts(advice: int) -> bool:
    """Whether an advice is known. The range is empty, so no advice can touch memory."""
    try:
        _libc.madvise(0, 0, advice)
    except OSError:
        return False
    return True


def merges() -> Optional[bool]:
    """Whether the advice is the right one; None if that cannot be found out now."""
    if not accepts(MADV_MERGE):
        return False
    named = _named()
    if named is False:
        return False
    try:
        probe = Probe()
    except OSError:
        return None
    try:
        return probe.keeps(reclaim=named is None)
    finally:
        probe.unmap()


def _named() -> Optional[bool]:
    """Whether the kernel names the engine; None if nothing can be seen that would."""
    try:
        if _libc.file_system(b"/sys/kernel/mm/sksm") == _SYSFS_MAGIC:
            return True
    except OSError as error:
        if error.errno == errno.ENOENT and _is_on(b"/sys/kernel/mm", _SYSFS_MAGIC):
            return False
    counts = b"/proc/self/ksm_stat"
    try:
        if _libc.file_system(counts) != _PROC_SUPER_MAGIC:
            return None
    except OSError as error:
        # A kernel with the engine has KSM, and so this file: where proc is there, its absence tells.
        absent = error.errno == errno.ENOENT and _is_on(b"/proc/self/stat", _PROC_SUPER_MAGIC)
        return False if absent else None
    try:
        with open(counts, "rb") as file:
            text = file.read()
    except OSError:
        return None
    return b"sksm_" in text if b"ksm_" in text else None


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

    def keeps(self, reclaim: bool) -> Optional[bool]:
        """Gives the advice, and looks whether it has left the page as it was; None if that cannot be found out."""
        try:
            _libc.madvise(self.page, _libc.PAGE, MADV_MERGE)
        except OSError as error:
            # Without memory for it, or ended by a signal.
            later = error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EINTR)
            return None if later else False
        if not self.is_one_mapping():
            return False
        if reclaim:
            try:
                _libc.madvise(self.page, _libc.PAGE, _MADV_PAGEOUT)
            except OSError:
                return None
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

    def has_its_bytes(self) -> Optional[bool]:
        """Has the kernel read the page, for which it gives an error where this program would end by a signal."""
        try:
            end, start = os.pipe()
        except OSError:
            return None
        try:
            os.set_blocking(start, False)
            os.set_blocking(end, False)
            written = _libc.write(start, self.page, _libc.PAGE)
            read = os.read(end, _libc.PAGE)
        except OSError as error:
            return False if error.errno == errno.EFAULT else None
        finally:
            os.close(start)
            os.close(end)
        if written != _libc.PAGE or len(read) != _libc.PAGE:
            return None
        return read == pattern(_libc.PAGE)
