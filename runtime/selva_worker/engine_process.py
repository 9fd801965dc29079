"""The engine as the supervisor sees it: a child to talk to, to end, and to explain when it died.

The engine ends when its input ends, and only the supervisor holds the other end of that pipe: no engine outlives its
supervisor. (Linux's parent-death signal would come when the *thread* that started the engine ends.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

MAX_LOG_BYTES = 1_000_000


class EngineProcess:
    """A running engine. `heard` is called with every message, and at last `ended`; both on a thread of its own.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        log: Path,
        *,
        heard: Callable[[EngineProcess, dict[str, Any]], None],
        ended: Callable[[EngineProcess], None],
    ) -> None:
        self.loaded: dict[str, Any] | None = None
        """The information about its session, once that is open."""
        self.exit_code: int | None = None
        """Negative if a signal ended it, as in `subprocess`."""
        self.peak_memory_bytes: int | None = None
        self.ending = False
        """Whether it was told to end."""
        self.temporary = ""
        """How the names of its unfinished files begin."""
        self._heard, self._ended = heard, ended
        self._lock = Lock()
        command = [sys.executable, "-m", "selva_worker.engine", json.dumps(settings)]
        with _log_file(log) as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
            )
        assert self._process.stdout is not None
        self._messages = open(self._process.stdout.fileno(), "rb", closefd=False)  # noqa: SIM115 -- with a buffer
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. Those of one job fit in the pipe, so this never blocks."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it died: `ended` will say so
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def kill(self) -> None:
        """End it at once."""
        with self._lock:
            self.ending = True
            if self.exit_code is None:
                if hasattr(os, "waitid"):
                    os.kill(self.pid, 9)  # Popen.kill would collect the exit status, and its peak with it
                else:
                    self._process.kill()

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout_s)

    def _listen(self) -> None:
        for text in self._messages:
            message = json.loads(text)
            if "temporary" in message:
                self.temporary = message["temporary"]
            else:
                self._heard(self, message)
        self._collect()
        self._ended(self)

    def _collect(self) -> None:
        """Wait for its end, and note the exit code and the most memory that it had."""
        if not hasattr(os, "waitid"):
            self.exit_code = self._process.wait()
            return
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:  # from here on its number may belong to another process
            _, status, usage = os.wait4(self.pid, 0)
            self.exit_code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_memory_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _log_file(log: Path) -> Any:
    """Open the log to append to it, or anew if it has grown long."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.unlink()
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def memory_bytes(pid: int | str = "self") -> int | None:
    """Return the memory that a process has now. None where the system does not tell."""
    with suppress(OSError, ValueError, StopIteration), open(f"/proc/{pid}/status") as status:
        return 1024 * int(next(text for text in status if text.startswith("VmRSS:")).split()[1])
    return None
