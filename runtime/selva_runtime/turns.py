"""Calls from several threads take turns: the networks run one call at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, RLock

from selva_bundle.errors import BackendError
from selva_runtime.backends.executor import POLL_S, Executor, check_cancel, check_process


class Turns:
    """Lets one thread at a time use an executor. A forked process cannot use it at all."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._process = os.getpid()
        self._lock = RLock()

    @contextmanager
    def take(self, cancel: Event | None) -> Iterator[None]:
        """Wait until no other thread's call runs.

        Raises:
            BackendError: this is a forked process.
            Cancelled: `cancel` was set while waiting.
        """
        check_process(self._process)
        while not self._lock.acquire(timeout=POLL_S):
            check_cancel(cancel)
        try:
            yield
        except BaseException:
            with suppress(BackendError):  # the first error counts
                self._executor.finish()  # queued work may still read the caller's memory
            raise
        finally:
            self._lock.release()
