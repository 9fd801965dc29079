"""Ctrl-C during a build. The library calls back into Python from C++, where a KeyboardInterrupt must not arise, so the
build runs on a worker thread while the main thread, which alone receives signals, waits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.1


def run_cancellable(work: Callable[[Event], T]) -> T:
    """`work(cancelled)` on a thread of its own. An interrupt sets `cancelled`, waits for `work` and is raised then."""
    cancelled = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="selva-engines") as pool:
        future = pool.submit(work, cancelled)
        try:
            while not wait([future], timeout=_POLL_S).done:
                pass
        except BaseException:
            cancelled.set()
            _wait_out(future)
            raise
        return future.result()


def _wait_out(future: Future[T]) -> None:
    """Waits however often Ctrl-C is pressed: the library cannot be left in the middle of a build."""
    while not future.done():
        try:
            wait([future], timeout=_POLL_S)
        except KeyboardInterrupt:
            continue
