"""Data in memory once for all processes of a user, on any Linux kernel.

Where the kernel has no ``MADV_MERGE``, equal data can be mapped from one file in memory instead::

    import sksm.store

    weights = sksm.store.freeze(load())

The array that comes back is read-only, and in memory once for all processes of the user that freeze the same. The store is in
``/dev/shm/sksm-UID``, or the directory that ``SKSM_STORE_DIR`` names. It takes the library for C, ``libsksm.so.0``, which Debian's package
``libsksm0`` has; ``SKSM_LIBRARY`` names another file.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Optional

from ._buffer import exported
from ._errors import Error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["StoreError", "collect", "freeze"]


class StoreError(Error):
    """What stood against it, and what to do about it. The data is as it was."""


_library: Optional[ctypes.CDLL] = None


def _store() -> ctypes.CDLL:
    global _library
    if _library is None:
        name = os.environ.get("SKSM_LIBRARY") or "libsksm.so.0"
        try:
            library = ctypes.CDLL(name)
            library.sksm_store_freeze.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p))
            library.sksm_store_release.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
            library.sksm_store_collect.restype = ctypes.c_ssize_t
            library.sksm_store_explain.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            text = f"{error}: install libsksm0 of this version, or have SKSM_LIBRARY name libsksm.so"
            raise StoreError(getattr(error, "errno", None) or 0, text) from None
        _library = library
    return _library


def _failed(store: ctypes.CDLL, status: int) -> StoreError:
    return StoreError(-status, store.sksm_store_explain().decode())


def freeze(data: ReadableBuffer) -> Any:
    """Puts the bytes of an array of numpy, or of anything else with the buffer protocol, into the store.

    Returns a read-only array of the same shape and type, or for what is no array a read-only memoryview of the bytes. The memory is
    given back with the last reference to it. The data that was given is left as it is: let go of it to save memory. No other thread may
    write it meanwhile; what is found to have changed is not frozen.

    Raises StoreError with what stood against it, TypeError for an object without the protocol, an array of Python objects, or a kind of
    array that is more than its bytes, as a masked one, ValueError
    for a buffer that is not contiguous.
    """
    is_array = _is_array(data)
    with exported(data) as region:
        length = region.length
        view = memoryview(b"") if length == 0 else _frozen(region.start, length)
    if not is_array:
        return view
    import numpy

    array: Any = data
    order = "C" if array.flags.c_contiguous else "F"
    return numpy.frombuffer(view, dtype=array.dtype).reshape(array.shape, order=order)


def _is_array(data: Any) -> bool:
    """Whether it is one of numpy that is no more than its bytes; raises TypeError for what may be more."""
    if not hasattr(data, "__array_interface__"):
        return False
    # Others describe themselves so, too, where there is no numpy.
    numpy = sys.modules.get("numpy")
    # What a subclass knows beside the bytes, as the mask of a masked array, would be lost.
    if numpy is None or (type(data) is not numpy.ndarray and not isinstance(data, numpy.generic)):
        kind = type(data).__name__
        raise TypeError(f"{kind} may be more than its bytes: freeze numpy.asarray(it), and of a masked array its .data and its .mask")
    if data.dtype.hasobject:
        raise TypeError("an array of Python objects holds addresses, which mean nothing to other processes")
    return True


def _frozen(start: int, length: int) -> memoryview:
    store = _store()
    address = ctypes.c_void_p()
    status = store.sksm_store_freeze(start, length, ctypes.byref(address))
    if status != 0:
        raise _failed(store, status)
    # What is seen of the memory keeps this alive, and this the memory.
    memory = (ctypes.c_char * length).from_address(address.value or 0)
    weakref.finalize(memory, store.sksm_store_release, address.value, length).atexit = False
    return memoryview(memory).cast("B").toreadonly()


def collect() -> int:
    """Removes what no process uses; returns how many bytes that were. Raises StoreError."""
    store = _store()
    status = int(store.sksm_store_collect())
    if status < 0:
        raise _failed(store, status)
    return status
