"""Processes that decode videos. They start from scratch, so this module imports little, and not PyTorch."""

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

START_METHOD = "spawn"
"""How processes start: forking can hang once PyTorch has started threads."""


def map_in_order(function: Callable[[K], T], items: Iterable[K], *, workers: int, ahead: int) -> Iterator[T]:
    """Yields `function(item)` for every item in order, with `ahead` more in progress; 0 workers: in this process.

    Raises:
        BrokenProcessPool: a worker died; raised at the first result lost by it.
    """
    if not workers:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, get_context(START_METHOD), initializer=ignore_interrupts)
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


def init_loader_worker(_worker: int) -> None:
    """Sets up a process of PyTorch's DataLoader.

    Such a process may end while one of its threads is still sending a batch. Python's usual shutdown would then abort
    with a message, so the process exits at once instead.
    """
    ignore_interrupts()
    Finalize(None, os._exit, args=(0,), exitpriority=-1000)


def ignore_interrupts() -> None:
    """Ignores Ctrl-C, which reaches every process of a terminal; the main process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
