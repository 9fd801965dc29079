"""Handle Ctrl-C during a build.

The library calls Python from C++, where no KeyboardInterrupt may be raised. Only the main thread receives signals, so
the build runs on a worker thread while the main thread waits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.1


def run_cancellable(work: Callable[[Event], T]) -> T:
    """Call `work(cancelled)` on its own thread. An interrupt sets `cancelled`, waits for `work` and is then raised.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    cancelled = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="selva-engines") as pool:
        future = pool.submit(work, cancelled)
        try:
            while not wait([future], timeout=_POLL_S).done:
                pass
        except BaseException:
            cancelled.set()
            _wait_until_done(future)
            raise
        return future.result()


def _wait_until_done(future: Future[T]) -> None:
    """Wait, however often Ctrl-C is pressed: the library cannot stop in the middle of a call."""
    while not future.done():
        try:
            wait([future], timeout=_POLL_S)
        except KeyboardInterrupt:
            continue
