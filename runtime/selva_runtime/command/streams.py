"""Standard streams that a command can rely on, whatever its parent did with them.

A host with windows starts programs without a stderr, and a pipe's reader may go away at any time. Neither is a reason
to make no stems. And a descriptor 0, 1 or 2 that is closed would be given to the next file that is opened, so that a
library's log lines would end up in a user's file.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

_ENCODING = "utf-8"


class _Lenient(io.BufferedWriter):
    """Writes to the null device from the first error on. Raises that one error unless it is one of the `dropped`."""

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
        super().flush()  # else what is still buffered would fail again when the interpreter ends
        if not isinstance(error, self._dropped):
            raise OSError(error.errno, error.strerror, self._name) from None


def secure_standard_streams() -> None:
    """Open what is closed on the null device; then lost text on stderr, or a lost reader of stdout, is no error."""
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
    """`stream`, made lenient if it is the process's own: a program that put another in its place knows what it does."""
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
