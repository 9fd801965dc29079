"""Pipes to a selva-worker of one's own, without a thread: threads crash Blender.

What the worker says is read when somebody asks for it. So a call takes as long as the worker's answer, which is
milliseconds, and a start can be waited for without waiting: `send` now, and `reply` whenever the timer ticks.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from .client import WorkerError, no_pipe_signal

_ANSWER_S = 5.0
"""A worker that does not answer a call within this time hangs."""
_CHUNK_BYTES, _MAX_CHUNKS, _MAX_LINE_BYTES = 1 << 16, 64, 1 << 24


class Pipes:
    """A transport for `client.Worker`: `call` and `close`. The worker's stderr goes to the file `errors`.

    Raises:
        WorkerError: the command cannot be started.
    """

    def __init__(self, command: list[str], errors: str) -> None:
        self._errors = errors
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0) if sys.platform == "win32" else 0
        try:
            with open(errors, "wb") as file:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, creationflags=flags, bufsize=0
                )
        except OSError as error:
            raise WorkerError(f"the worker cannot be started: {error}") from error
        self._number = 0
        self._text = bytearray()
        self._replies: dict[int, dict[str, Any]] = {}
        self._ended = False

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its reply.

        Raises:
            WorkerError: the worker is gone, or does not answer.
        """
        number = self.send(message)
        until_s = time.monotonic() + _ANSWER_S
        while (found := self.reply(number, wait_s=0.05)) is None:
            if time.monotonic() > until_s:
                raise WorkerError("the worker does not answer")
        return found

    def send(self, message: dict[str, Any]) -> int:
        """Send a request and return its number, for `reply`.

        Raises:
            WorkerError: the worker is gone.
        """
        assert self.process.stdin is not None
        self._number += 1
        data = json.dumps({**message, "id": self._number}).encode() + b"\n"
        try:
            with no_pipe_signal():
                while data:
                    data = data[self.process.stdin.write(data) :]
        except (OSError, ValueError) as error:
            raise self._gone() from error
        return self._number

    def reply(self, number: int, wait_s: float = 0.0) -> dict[str, Any] | None:
        """Return the reply to a request. None if it is not there after `wait_s`.

        Raises:
            WorkerError: the worker is gone.
        """
        self._read(wait_s)
        if number not in self._replies and self._ended:
            raise self._gone()
        return self._replies.pop(number, None)

    def close(self) -> None:
        """Close the pipes: the worker leaves. One that does not is killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self, wait_s: float) -> None:
        """Take what has arrived, but not without end: a program that babbles must not hold up the host."""
        assert self.process.stdout is not None
        place = self.process.stdout.fileno()
        for _ in range(_MAX_CHUNKS):
            if self._ended or not _readable(place, wait_s):
                return
            wait_s = 0.0
            chunk = os.read(place, _CHUNK_BYTES)
            self._ended = not chunk
            self._text += chunk
            *lines, rest = self._text.split(b"\n") if b"\n" in chunk else [self._text]
            self._text = rest
            if len(rest) > _MAX_LINE_BYTES:
                raise self._stranger()
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            raise self._stranger() from None
        if not isinstance(message, dict) or not {"method", "result", "error"} & set(message):
            raise self._stranger()
        if "method" not in message and isinstance(message.get("id"), int):
            self._replies[message["id"]] = message

    def _stranger(self) -> WorkerError:
        self._ended = True
        self.process.kill()
        return WorkerError(f"{self.process.args[0]} is not a selva-worker: it answers something else")

    def _gone(self) -> WorkerError:
        self._ended = True
        try:
            code = f"exit code {self.process.wait(0.5)}"
        except subprocess.TimeoutExpired:
            code = "its pipes closed"
        said = last_line(self._errors)
        return WorkerError(f"the worker is gone ({code})" + (f": {said}" if said else ""))


def last_line(path: str) -> str:
    """Return the last line of a log, or "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _readable(place: int, wait_s: float) -> bool:
    """Whether a read would return at once. Waits for it up to `wait_s`."""
    if sys.platform != "win32":
        poll = select.poll()
        poll.register(place, select.POLLIN)
        return bool(poll.poll(1000 * wait_s))
    import ctypes
    import msvcrt

    handle, waiting = msvcrt.get_osfhandle(place), ctypes.c_ulong()
    until_s = time.monotonic() + wait_s
    while True:
        alive = ctypes.windll.kernel32.PeekNamedPipe(handle, None, 0, None, ctypes.byref(waiting), None)
        if not alive or waiting.value:
            return True
        if time.monotonic() >= until_s:
            return False
        time.sleep(0.005)
