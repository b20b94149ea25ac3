"""For hooks of servers: merge now, or after a time, and tell a log what came of it.

Nothing here raises what a merge raises, as servers end or restart a worker for an exception in a hook; it goes to the log.
"""

from __future__ import annotations

import logging
import threading
from typing import Callable, Optional, Union

from ._errors import Error, Unsupported
from ._freeze import Frozen, freeze_and_merge
from ._merge import merge_heap
from ._merged import Merged
from ._support import require

_logger = logging.getLogger("sksm")

Log = Optional[Callable[[str], object]]


class Timer(threading.Thread):
    """Merges after a time, in a thread that ends with the program."""

    def __init__(self, seconds: float, every: Optional[float], log: Log) -> None:
        super().__init__(name="sksm", daemon=True)
        self._seconds, self._every, self._log = seconds, every, log
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """No merge begins after this."""
        self._cancelled.set()

    def run(self) -> None:
        if self._cancelled.wait(self._seconds):
            return
        merge_now(self._log)
        while self._every is not None and not self._cancelled.wait(self._every):
            # Frozen again, garbage of requests in between would stay for ever.
            _tell(merge_heap, self._log)


def merge_now(log: Log = None) -> Optional[Frozen]:
    """freeze_and_merge(), for the end of what a worker loads. None if it failed, which the log tells.

    `log` takes each line of text. Without one they go to the logger "sksm": as info, but failures as warnings, which are shown
    also where nobody has set logging up. That a kernel does not merge is no failure.
    """
    done = _tell(freeze_and_merge, log)
    return done if isinstance(done, Frozen) else None


def merge_after(seconds: float, every: Optional[float] = None, log: Log = None) -> Optional[Timer]:
    """merge_now() in so many seconds, and merge_heap() each `every` seconds from then on, if that is given.

    Returns the timer, by which it can be cancelled; None, and a line in the log, where the kernel does not merge. It takes a thread
    of this process, so call it in the worker and not before the fork: no thread survives that.

    Raises ValueError, on any kernel, for an `every` that is not above 0.
    """
    if every is not None and not every > 0:
        raise ValueError(f"every={every}: merging without a pause would take a whole processor; every=600 is ten minutes")
    try:
        require()
    except Error as error:
        _log(log, error)
        return None
    timer = Timer(seconds, every, log)
    timer.start()
    return timer


def _tell(what: Callable[[], Union[Frozen, Merged]], log: Log) -> Union[Frozen, Merged, None]:
    try:
        done = what()
    except Error as error:
        _log(log, error)
        return None
    _log(log, done)
    return done


def _log(log: Log, what: Union[Frozen, Merged, Error]) -> None:
    if log is None:
        failed = isinstance(what, Error) and not isinstance(what, Unsupported)
        log = _logger.warning if failed else _logger.info
    log(f"sksm: {what}")
