"""What a process holds, as /proc/PID/smaps tells it, and what of that is left alone."""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass
from typing import FrozenSet, List, Optional, Union

from ._errors import Error, Gone, NotAProcess, Unreadable, of_reading
from ._region import Region


class Kind(enum.Enum):
    """What a mapping holds."""

    #: Executable: of a file, patched or not, or made by a JIT compiler.
    TEXT = "text"
    #: Private memory of a file that is not executable: variables of programs and libraries.
    DATA = "data"
    #: Private anonymous memory: Python's objects, malloc's arenas, numpy's arrays, and stacks of threads.
    HEAP = "heap"
    #: The main thread's stack.
    STACK = "stack"
    #: Everything that never merges: shared memory, and the kernel's own pages.
    OTHER = "other"


#: Flags of mappings that may hold secrets, and what they mean. The kernel passes over them when another process asks, and this
#: package also leaves them alone in its own process.
_SECRET = {
    b"lo": "locked (mlock): it may hold secrets",
    b"dd": "left out of core dumps (MADV_DONTDUMP): it may hold secrets",
    b"wf": "wiped on fork (MADV_WIPEONFORK): it may hold secrets",
}

#: Flags of mappings that the kernel never merges: of page frames, devices, not to be expanded, mixed, hugetlbfs, droppable, shadow
#: stacks.
_NEVER_MERGED = frozenset((b"pf", b"io", b"de", b"mm", b"ht", b"dp", b"ss"))


@dataclass(frozen=True)
class Mapping:
    """One mapping of a process."""

    region: Region
    kind: Kind
    #: The file's path, or a name such as [heap]; empty for anonymous memory. Paths are bytes.
    path: bytes
    #: Whether writes stay the process's own.
    private: bool
    #: Bytes in private pages; what has none has nothing to merge.
    anonymous: int
    #: As VmFlags names them.
    flags: FrozenSet[bytes]

    @property
    def secret(self) -> Optional[str]:
        """Why it may hold secrets; None if nothing says so."""
        return next((why for flag, why in _SECRET.items() if flag in self.flags), None)

    @property
    def unmergeable(self) -> Optional[str]:
        """Why it is left alone whatever is asked for; None if it is not."""
        if not self.private:
            return "shared memory never merges"
        if self.kind is Kind.OTHER:
            return "it cannot be accessed, or is the kernel's own"
        if self.flags & _NEVER_MERGED:
            return "memory of a device, or in huge pages of hugetlbfs"
        return self.secret


def mappings_of(pid: Union[int, str]) -> List[Mapping]:
    """The mappings of a process, in the order of their addresses; "self" is this one."""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            text = file.read()
    except OSError as error:
        raise _unread(error, pid, f"/proc/{pid}/smaps") from None
    return parse(text)


def parse(text: bytes) -> List[Mapping]:
    mappings: List[Mapping] = []
    line: Optional[bytes] = None
    anonymous = 0
    flags: FrozenSet[bytes] = frozenset()

    def end() -> None:
        if line is not None:
            mappings.append(_mapping(line, anonymous, flags))

    # A path may hold anything but a newline, so this is not splitlines().
    for part in text.split(b"\n"):
        if part[:1].isdigit() or b"a" <= part[:1] <= b"f":
            end()
            line, anonymous, flags = part, 0, frozenset()
        elif part.startswith(b"Anonymous:"):
            anonymous = int(part.split()[1]) * 1024
        elif part.startswith(b"VmFlags:"):
            flags = frozenset(part.split()[1:])
    end()
    return mappings


def _mapping(line: bytes, anonymous: int, flags: FrozenSet[bytes]) -> Mapping:
    words = line.split(b" ", 5)
    try:
        start, end = (int(word, 16) for word in words[0].split(b"-"))
        access, inode = words[1], int(words[4])
        path = words[5].lstrip(b" ") if len(words) > 5 else b""
        kind = _kind(access, inode, path)
    except (ValueError, IndexError):
        raise Unreadable(errno.EINVAL, f"a line of smaps is not understood: {line!r}") from None
    return Mapping(Region(start, end - start), kind, path, access[3:4] == b"p", anonymous, flags)


def _kind(access: bytes, inode: int, path: bytes) -> Kind:
    if access[3:4] != b"p" or path.startswith(b"[v") or access[:3] == b"---":
        return Kind.OTHER
    if path.startswith(b"[stack"):
        return Kind.STACK
    if access[2:3] == b"x":
        return Kind.TEXT
    return Kind.DATA if inode != 0 else Kind.HEAP


def _unread(error: OSError, pid: Union[int, str], file: str) -> Error:
    """Why a file of a process could not be read. One that is not there may be that of a kernel without it, or proc is not there."""
    if isinstance(error, ProcessLookupError) or (
        isinstance(error, FileNotFoundError) and isinstance(pid, int) and not _is_there(pid)
    ):
        return Gone(errno.ESRCH, f"there is no process {pid}, or it has ended")
    return of_reading(error, file)


def _is_there(pid: int) -> bool:
    """Whether there is such a process, which takes no proc."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def check_process(pid: int) -> None:
    """Refuses numbers that are no process's, with what they are.

    Raises Gone and NotAProcess.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            group = next(line for line in file.read().split(b"\n") if line.startswith(b"Tgid:"))
        with open(f"/proc/{pid}/stat", "rb") as file:
            # After the name, which may hold anything: state, four numbers of other processes and of the terminal, that of its
            # foreground group, flags.
            kernel_thread = int(file.read().rpartition(b")")[2].split()[6]) & 0x0020_0000
    except OSError as error:
        raise _unread(error, pid, f"/proc/{pid}/status") from None
    process = int(group.split()[1])
    if process != pid:
        text = f"{pid} is a thread of process {process}: give that number, all threads share its memory"
        raise NotAProcess(errno.EINVAL, text)
    if kernel_thread:
        raise NotAProcess(errno.EINVAL, f"{pid} is a thread of the kernel and has no memory of its own: leave it out")
