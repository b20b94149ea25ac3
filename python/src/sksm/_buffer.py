"""Where the bytes of an object are that has the buffer protocol."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Iterator

from ._region import Region

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# In memory without gaps, in whatever order: numpy's arrays may be transposed.
_ANY_CONTIGUOUS = 0x98


class _PyBuffer(ctypes.Structure):
    """The structure Py_buffer, which is the same in all versions."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


@contextlib.contextmanager
def exported(buffer: ReadableBuffer) -> Iterator[Region]:
    """The addresses of a buffer, which stays where it is meanwhile: what could be resized refuses to.

    Raises TypeError for an object without the protocol, ValueError for a buffer that is not contiguous.
    """
    # ctypes itself gives only the addresses of what may be written, and bytes may not.
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    view = _PyBuffer()
    try:
        get(ctypes.py_object(buffer), ctypes.byref(view), ctypes.c_int(_ANY_CONTIGUOUS))
    except (ValueError, BufferError) as error:
        raise ValueError(
            f"the buffer is not contiguous ({error}): merge what it is a view of, or a copy"
        ) from None
    try:
        yield Region(view.buf or 0, view.len)
    finally:
        release(ctypes.byref(view))
