"""Other processes that decode videos. They start anew, so what they import is kept small: no PyTorch in here."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")

START = "spawn"
"""How processes start: forking after PyTorch has started threads can hang."""


def in_order(function: Callable[[K], T], items: Iterable[K], *, workers: int, ahead: int) -> Iterator[T]:
    """`function(item)` for every item, in order, `ahead` more of them already under way; 0 workers: in this process.

    Raises:
        BrokenProcessPool: a worker has died, with the first result that is lost by it.
    """
    if not workers:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, get_context(START), initializer=ignore_interrupts)
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def begin_loading(_worker: int) -> None:
    """First thing in a process of PyTorch's DataLoader.

    Such a process is ended while a thread of it may still be sending a batch, which aborts it with a message if Python
    is then taken down in the usual way: it leaves at once instead.
    """
    ignore_interrupts()
    Finalize(None, os._exit, args=(0,), exitpriority=-1000)


def ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; it is the main one that decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
