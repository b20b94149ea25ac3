"""The calls to the C library that merging takes. A call that fails is an OSError with its number."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Literal

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_PRIVATE, MAP_ANONYMOUS = 0x02, 0x20

# As of the table that all architectures have in common since Linux 5.1; only Alpha counts otherwise, and merges nothing.
_PIDFD_OPEN, _PROCESS_MADVISE = 434, 440

#: Android's kernel is Linux.
LINUX = sys.platform in ("linux", "android")

PAGE: int = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096

if LINUX:
    _c = ctypes.CDLL(None, use_errno=True)
    _c.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _c.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    _c.mmap.restype = ctypes.c_void_p
    _c.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    _c.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    _c.mremap.restype = ctypes.c_void_p
    _c.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _c.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    _c.write.restype = ctypes.c_ssize_t
    _c.statfs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    _c.syscall.restype = ctypes.c_long

_FAILED_ADDRESS = ctypes.c_void_p(-1).value


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def madvise(start: int, length: int, advice: int) -> None:
    """Gives an advice as it is: nothing is rounded or checked. It lets other threads of Python run meanwhile."""
    if _c.madvise(start, length, advice) != 0:
        raise _error()


def mmap_anonymous(length: int) -> int:
    """The address of new private memory. It is no object of Python's, so that nobody else knows of it."""
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    start = _c.mmap(None, length, PROT_READ | PROT_WRITE, flags, -1, 0)
    if start is None or start == _FAILED_ADDRESS:
        raise _error()
    return int(start)


def munmap(start: int, length: int) -> None:
    if _c.munmap(start, length) != 0:
        raise _error()


def grow(start: int, length: int, longer: int) -> None:
    """Makes a mapping longer where it is."""
    where = _c.mremap(start, length, longer, 0)
    if where == _FAILED_ADDRESS:
        raise _error()
    if where != start:
        # No kernel moves it unless it may, so this is not its answer.
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def mprotect(start: int, length: int, protection: int) -> None:
    if _c.mprotect(start, length, protection) != 0:
        raise _error()


def write(fd: int, start: int, length: int) -> int:
    """Has the kernel read memory: where that cannot be read it is an error, and not the end of the program."""
    count = int(_c.write(fd, start, length))
    if count < 0:
        raise _error()
    return count


def read(path: bytes) -> bytes:
    """What is in a file of the kernel's."""
    with open(path, "rb") as file:
        return file.read()


def file_system(path: bytes) -> int:
    """What kind of file system a file is on, as in statfs(2)."""
    # The structure differs, but for its first field, and is nowhere longer.
    room = (ctypes.c_long * 64)()
    if _c.statfs(path, ctypes.byref(room)) != 0:
        raise _error()
    return first_of_statfs(bytes(room), os.uname().machine, sys.byteorder)


def first_of_statfs(room: bytes, machine: str, order: Literal["little", "big"]) -> int:
    """The field f_type, which is a long but for s390 and s390x, where it is an int."""
    size = 4 if machine.startswith("s390") else ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(room[:size], order) & 0xFFFF_FFFF


def pidfd_open(pid: int) -> int:
    """A descriptor of a process, which stays that process's even when the number is given to another one."""
    fd = int(_c.syscall(ctypes.c_long(_PIDFD_OPEN), ctypes.c_int(pid), ctypes.c_uint(0)))
    if fd < 0:
        raise _error()
    return fd


class _Range(ctypes.Structure):
    """The structure iovec."""

    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def process_madvise(pidfd: int, start: int, length: int, advice: int) -> int:
    """Advises a range of another process, and tells how much of it the kernel took."""
    one = _Range(start, length)
    count = _c.syscall(
        ctypes.c_long(_PROCESS_MADVISE),
        ctypes.c_int(pidfd),
        ctypes.byref(one),
        ctypes.c_size_t(1),
        ctypes.c_int(advice),
        ctypes.c_uint(0),
    )
    if count < 0:
        raise _error()
    return int(count)
