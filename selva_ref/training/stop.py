"""Ctrl-C and SIGTERM during training: finish the step, save its state, then let the signal take effect."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal has arrived, and which."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def raise_signal(self) -> None:
        """Lets the held-back signal take effect; raises SIGTERM if another process received it."""
        signal.raise_signal(self.signal_number or signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Holds back the first signal; a second one takes effect at once. Signals only reach the main thread."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def defer(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        restore()

    for number in SIGNALS:
        signal.signal(number, defer)
    try:
        yield request
    finally:
        restore()
