"""Standard streams that a command can use, whatever its parent did with them.

A host with a window starts programs without stderr, and the reader of a pipe may go away at any time. Neither must
stop the work. If descriptor 0, 1 or 2 is closed, the next file that is opened would get that number, and a library's
log lines would end up in a user's file.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

_ENCODING = "utf-8"


class _Lenient(io.BufferedWriter):
    """A writer that switches to the null device at the first error, and raises it unless it is of type `dropped`."""

    def __init__(self, raw: io.RawIOBase, name: str, dropped: type[OSError]) -> None:
        super().__init__(raw)
        self._name, self._dropped = name, dropped

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._give_up(error)
            return len(data)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        super().flush()  # otherwise the buffered text would fail again when the interpreter ends
        if not isinstance(error, self._dropped):
            raise OSError(error.errno, error.strerror, self._name) from None


def secure_standard_streams() -> None:
    """Open closed standard streams on the null device, and ignore lost text on stderr and a lost reader of stdout."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding=_ENCODING, closefd=False)  # noqa: SIM115
    sys.stdout = _lenient(sys.stdout, sys.__stdout__, 1, "standard output", BrokenPipeError)
    sys.stderr = _lenient(sys.stderr, sys.__stderr__, 2, "standard error", OSError)


def _lenient(
    stream: TextIO | None, original: TextIO | None, descriptor: int, name: str, dropped: type[OSError]
) -> TextIO:
    """Make `stream` lenient if it is the process's own. A program that replaced it knows what it does."""
    if stream is None:
        return open(descriptor, "w", encoding=_ENCODING, errors="backslashreplace", closefd=False)
    if stream is not original:
        return stream
    buffer: Any = stream.buffer
    return io.TextIOWrapper(
        _Lenient(getattr(buffer, "raw", buffer), name, dropped),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering) or descriptor == 2,
    )
