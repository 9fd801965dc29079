"""Handle Ctrl-C and SIGTERM so that none is lost.

It is not enough to raise an exception in a signal handler. If the main thread is in a weak reference's callback or in
`__del__`, Python prints the exception and continues. So the handler stores the signal and sets an event:

1. A command that checks the event (`grace_s` above 0) stops at its next safe point.
2. For other commands, whose foreign calls (an export, a training step) never check it, an exception is raised in the
   main thread at once.
3. A timer checks whether the stack unwinds, after `grace_s` and then every `_AGAIN_S`. If not, it raises again.
4. Another signal ends the process at once if it comes `_INSIST_S` or more after the first. An earlier one is ignored
   as a duplicate, which `timeout` and process groups send.

Windows has no timer, so 3 is missing there. Python runs handlers between bytecodes of the main thread, so nothing here
can end a foreign call that never returns.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from selva_bundle.errors import Cancelled

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HAS_TIMER = hasattr(signal, "setitimer")
_AGAIN_S = 0.25
_INSIST_S = 1.0


class TerminatedError(BaseException):
    """SIGTERM as an exception that unwinds the stack, as Ctrl-C does."""


_UNWINDS = (KeyboardInterrupt, TerminatedError, Cancelled)


class StopSignals:
    """A context that handles signals on the main thread. On any other thread it does nothing."""

    def __init__(self, grace_s: float) -> None:
        self.event = threading.Event()
        """Set once a signal has come. Use only `is_set`: the other methods take a lock, which may be held meanwhile."""
        self.number: int | None = None
        """The signal that came, or None."""
        self._grace_s = grace_s
        self._first_s = 0.0
        self._listening = False
        self._before: dict[int, signal._HANDLER] = {}
        self._hook_before = sys.unraisablehook

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._listening = True
            # a signal that the parent set to be ignored, as a shell does for background jobs, stays ignored
            heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            handlers: dict[int, signal._HANDLER] = dict.fromkeys(heard, self._arrived)
            if _HAS_TIMER:
                handlers[signal.SIGALRM] = self._look_again
            self._hook_before, sys.unraisablehook = sys.unraisablehook, self._unraisable
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._listening:
            return
        self._listening = False
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._hook_before
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        if not self._listening:
            return
        if self.number is not None:
            if time.monotonic() - self._first_s >= _INSIST_S:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.number, self._first_s = number, time.monotonic()
        self.event.set()
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, self._grace_s or _AGAIN_S, _AGAIN_S)
        if not self._grace_s:
            raise self._exception()

    def _look_again(self, _number: int, _frame: FrameType | None) -> None:
        if self._listening and not _is_unwinding():
            raise self._exception()

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Print no traceback for an exception that Python could not raise. The timer raises it again."""
        if not isinstance(lost.exc_value, _UNWINDS):
            self._hook_before(lost)

    def _exception(self) -> BaseException:
        return TerminatedError() if self.number == signal.SIGTERM else KeyboardInterrupt()


def _is_unwinding() -> bool:
    """Whether the main thread is in an `except`, `finally` or `with` block because of one of these exceptions."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, _UNWINDS):
            return True
        error = error.__context__
    return False
