"""A client of selva-worker in one file. It needs Python 3.9 and nothing else: copy it into a host program.

    worker = Worker.start(allow=["/films"])          # or Worker.find(), for one that runs already
    job = worker.submit({"video": "/films/street.mp4", "prompts": ["dog barking"], "out": "/films/stems"})
    done = worker.wait(job["id"])
    print(done["result"]["stems"][0]["file"])
    worker.close()

A call takes milliseconds, whatever the worker does, so a host may make it where it draws its windows.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

PROTOCOL = 1
"""Version of the methods and of what they take and return."""
ENDED = ("done", "failed", "cancelled", "interrupted")
"""The states in which a job stays."""
MAX_REQUEST_BYTES = 1 << 20
"""The longest request that a worker reads."""
_TOO_LONG, _ID_BYTES = -32600, 20
_TIMEOUT_S = 30.0


class WorkerError(Exception):
    """The worker refused a call, or is gone. `code` is that of JSON-RPC, or None if the worker is gone."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def no_pipe_signal() -> Iterator[None]:
    """Keep this thread from SIGPIPE, which a write to a dead worker sends.

    A usual Python ignores it, but one that is embedded in a host may not, and the host would die of it.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before and signal.SIGPIPE in signal.sigpending():
            signal.sigwait({signal.SIGPIPE})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def user_state() -> str:
    """Return the folder in which this user's programs keep what they need to go on."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return base or os.path.expanduser("~\\AppData\\Local")
    return os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")


def rendezvous_path() -> str:
    """Return the file in which a worker on HTTP says where it listens."""
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or user_state(), "selva", "worker.json")


class Worker:
    """A connection to a worker. It may be used from several threads."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @classmethod
    def start(
        cls,
        command: Sequence[str] = ("selva-worker",),
        *,
        allow: Sequence[str] = (),
        options: Sequence[str] = (),
        on_change: Callable[[dict[str, Any]], None] | None = None,
    ) -> Worker:
        """Start a worker of one's own, which leaves when this process does.

        `options` are more options of selva-worker. `on_change` is called on another thread with each job that changed.
        """
        arguments = [*command, "--stdio", *options]
        for folder in allow:
            arguments += ["--allow", os.path.abspath(folder)]
        return cls._checked(_Stdio(arguments, on_change))

    @classmethod
    def find(cls) -> Worker | None:
        """Connect to the worker that this user runs on HTTP. None if there is none, or its file is left over."""
        try:
            with open(rendezvous_path(), encoding="utf-8") as file:
                place = json.load(file)
            transport = _Http(int(place["port"]), str(place["token"]))
            return cls._checked(transport)
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            return None
        except WorkerError as error:
            if error.code is None:  # another program has the port now
                return None
            raise

    @classmethod
    def _checked(cls, transport: Any) -> Worker:
        worker = cls(transport)
        try:
            worker.call("initialize", protocol=PROTOCOL)
        except BaseException:
            transport.close()
            raise
        return worker

    def call(self, method: str, **params: Any) -> Any:
        """Call a method and return its result.

        Raises:
            WorkerError: the worker refused, or is gone.
        """
        message = {"jsonrpc": "2.0", "id": 0, "method": method, "params": params}
        if len(json.dumps(message)) > MAX_REQUEST_BYTES - _ID_BYTES:
            raise WorkerError(f"the request is longer than {MAX_REQUEST_BYTES} bytes", _TOO_LONG)
        reply = self._transport.call(message)
        if "error" in reply:
            raise WorkerError(reply["error"]["message"], reply["error"]["code"])
        return reply["result"]

    def submit(self, request: dict[str, Any], *, key: str | None = None, urgent: bool = False) -> dict[str, Any]:
        """Queue a request. The same key never runs twice, so a call can be repeated after a failure."""
        found: dict[str, Any] = self.call(
            "job.submit", request=request, urgent=urgent, **({} if key is None else {"key": key})
        )
        return found

    def get(self, job: str) -> dict[str, Any]:
        """Return a job: its state, progress, result and error."""
        found: dict[str, Any] = self.call("job.get", job=job)
        return found

    def cancel(self, job: str) -> dict[str, Any]:
        """Cancel a job."""
        found: dict[str, Any] = self.call("job.cancel", job=job)
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, without their requests and results."""
        found: list[dict[str, Any]] = self.call("job.list")
        return found

    def wait(self, job: str, *, timeout_s: float = float("inf"), poll_s: float = 0.05) -> dict[str, Any]:
        """Wait until a job has ended, and return it.

        Raises:
            TimeoutError: it takes longer.
            WorkerError: the worker is gone.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            found = self.get(job)
            if found["state"] in ENDED:
                return found
            if time.monotonic() > until_s:
                raise TimeoutError("the job is still " + found["state"])
            time.sleep(poll_s)

    def close(self) -> None:
        """Leave. A worker that `start` started ends; one that `find` found goes on."""
        self._transport.close()


class _Stdio:
    """A worker of one's own, on pipes."""

    def __init__(self, command: list[str], on_change: Callable[[dict[str, Any]], None] | None) -> None:
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0) if sys.platform == "win32" else 0
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, creationflags=flags
            )
        except OSError as error:
            raise WorkerError("the worker cannot be started: " + str(error)) from error
        self._on_change = on_change
        self._number = 0
        self._replies: dict[int, Any] = {}
        self._gone = False
        self._arrived = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        with self._arrived:
            self._number += 1
            number = message["id"] = self._number
            try:
                with no_pipe_signal():
                    self.process.stdin.write(json.dumps(message).encode() + b"\n")
                    self.process.stdin.flush()
            except (OSError, ValueError) as error:
                raise WorkerError("the worker is gone") from error
            if not self._arrived.wait_for(lambda: number in self._replies or self._gone, _TIMEOUT_S):
                raise WorkerError("the worker does not answer")
            if number not in self._replies:
                raise WorkerError("the worker is gone")
            reply: dict[str, Any] = self._replies.pop(number)
            return reply

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            message = json.loads(text)
            if "id" not in message:
                if self._on_change is not None:
                    self._on_change(message["params"])
                continue
            with self._arrived:
                self._replies[message["id"]] = message
                self._arrived.notify_all()
        with self._arrived:
            self._gone = True
            self._arrived.notify_all()

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError), no_pipe_signal():
            self.process.stdin.close()
        self.process.wait()


class _Http:
    """A worker that runs already. Each call has a connection of its own."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        headers = {"Authorization": "Bearer " + self._token, "Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/rpc", json.dumps(message).encode(), headers)
            reply = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise WorkerError("the worker is gone: " + str(error)) from error
        finally:
            connection.close()
        if not isinstance(reply, dict) or not ("result" in reply or isinstance(reply.get("error"), dict)):
            raise WorkerError("the worker refused the connection: " + str(reply))
        return reply

    def close(self) -> None:
        """Do nothing: no connection is open."""
