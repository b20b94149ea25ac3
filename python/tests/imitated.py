"""Other kernels, which know another advice by the number of MADV_MERGE, and one that merges as far as this package can tell."""

import contextlib
import errno
import os
from unittest import mock

from sksm import Support, _libc, _support
from sksm._handshake import MADV_MERGE

DONTNEED, FREE, REMOVE, DONTFORK, DONTDUMP, WIPEONFORK, MERGEABLE = 4, 8, 9, 10, 16, 18, 12

SYSFS, PROC = 0x62656572, 0x9FA0

_madvise = _libc.madvise


def fail(number):
    raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def kernel(number, sysfs):
    """`number`: what it does for a range that is not empty, or a number of an error for any range; `sysfs`: the number that the
    engine says of its advice, or whether it is "named" and does not say it, "other" ones are, or it is "hidden" together with proc.
    With "uncounted" proc can be seen, and has no counts of KSM.
    """

    def madvise(start, length, advice):
        if advice != MADV_MERGE:
            return _madvise(start, length, advice)
        if isinstance(number, int):
            fail(number)
        if length > 0:
            number(start, length)

    numbered = isinstance(sysfs, int)

    def file_system(path):
        # As a kernel would say it; what is mounted where the tests run is nothing to them.
        seen = {
            "named": {b"/sys/kernel/mm/sksm": SYSFS, b"/sys/kernel/mm": SYSFS},
            "other": {b"/sys/kernel/mm": SYSFS},
            "uncounted": {b"/proc/self/stat": PROC},
            "hidden": {},
        }
        return seen["named" if numbered else sysfs].get(path) or fail(errno.ENOENT)

    def read(path):
        if numbered and path == b"/sys/kernel/mm/sksm/advice":
            return b"%d\n" % sysfs
        fail(errno.ENOENT)

    with mock.patch.object(_libc, "madvise", madvise), mock.patch.object(
        _libc, "file_system", file_system
    ), mock.patch.object(_libc, "read", read), mock.patch.object(_support, "_answer", None):
        yield


def advice(other):
    return lambda start, length: _madvise(start, length, other)


def keep(start, length):
    """As an engine that finds no twin."""


def guard(start, length):
    _libc.mprotect(start, length, _libc.PROT_NONE)


def refuse(number):
    return lambda start, length: fail(number)


@contextlib.contextmanager
def merging():
    """A kernel that takes all, and a list of the ranges that it was given."""
    given = []

    def madvise(start, length, advice):
        if advice == MADV_MERGE:
            given.append((start, length))
        else:
            _madvise(start, length, advice)

    with mock.patch.object(_libc, "madvise", madvise), mock.patch.object(
        _support, "_answer", Support.MERGE
    ):
        yield given


@contextlib.contextmanager
def without_proc():
    """Where proc is not mounted, as in a chroot."""
    real = open

    def other(path, *words, **options):
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path, *words, **options)

    with mock.patch("builtins.open", other):
        yield
