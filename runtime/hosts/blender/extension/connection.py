"""The worker of this Blender: found, started without waiting, and used again until it is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from .client import PROTOCOL, Worker, WorkerError
from .pipes import Pipes

PYTHON_VARIABLE = "SELVA_PYTHON"
_START_S = 120.0
"""A worker that was not read from the disk for long may take this long to start."""


class NotFoundError(WorkerError):
    """There is no worker to start."""


def find_command(
    preference: str, environment: Mapping[str, str], which: Callable[[str], str | None]
) -> tuple[list[str], str]:
    """Return the command that starts a worker, and what named it: the preference, SELVA_PYTHON or PATH.

    The first two name a Python that has selva-deploy, or selva-worker itself.

    Raises:
        NotFoundError: nothing names one.
    """
    for named, by in ((preference, "the preference"), (environment.get(PYTHON_VARIABLE, ""), PYTHON_VARIABLE)):
        if named.strip():
            return _started_by(os.path.expanduser(named.strip())), by
    found = which("selva-worker")
    if found is None:
        raise NotFoundError(f"no worker is named in the preferences or by {PYTHON_VARIABLE}, and none is on PATH")
    return [found], "PATH"


def _started_by(program: str) -> list[str]:
    is_worker = os.path.basename(program).lower().startswith("selva-worker")
    return [program] if is_worker else [program, "-m", "selva_worker"]


class Connection:
    """A worker that was started, and may not have answered yet. `folder` holds its log until then.

    Raises:
        WorkerError: the command cannot be started.
    """

    def __init__(self, command: list[str], options: list[str], folder: str) -> None:
        self.made_from = (command, options)
        self.log = os.path.join(folder, f"selva-worker-{os.getpid()}.log")
        """Where to look if something fails: what the worker prints, and once it answers the log that it keeps."""
        self.facts: dict[str, Any] | None = None
        """The answer to `initialize`. None until the worker is ready."""
        self._until_s = time.monotonic() + _START_S
        self._pipes = Pipes([*command, "--stdio", *options], self.log)
        self.worker = Worker(self._pipes)
        self._hello = self._pipes.send({"jsonrpc": "2.0", "method": "initialize", "params": {"protocol": PROTOCOL}})

    def ready(self) -> bool:
        """Whether the worker has started. This does not wait for it.

        Raises:
            WorkerError: it ended, refused this client, or does not start.
        """
        if self.facts is None and (reply := self._pipes.reply(self._hello)) is not None:
            if "error" in reply:
                raise WorkerError(reply["error"]["message"])
            self.log = self.worker.call("doctor")["log"]
            self.facts = reply["result"]
        if self.facts is None and time.monotonic() > self._until_s:
            raise WorkerError("the worker does not start")
        return self.facts is not None

    @property
    def is_alive(self) -> bool:
        """Whether the worker's process runs."""
        return self._pipes.process.poll() is None

    def close(self) -> None:
        """Let the worker leave."""
        self.worker.close()
