"""What this Blender is doing with a worker: at most one run at a time, and one worker for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from .connection import Connection
from .run import RUNNING, Run


class State:
    """What the panel shows and the operators change. None of it belongs in a .blend file."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.connection: Connection | None = None
        self.messages: list[str] = []
        """About the last run."""
        self.examined: list[str] = []
        """What `doctor` found."""
        self.install = ""
        """The line that installs what is missing, or ""."""

    @property
    def is_busy(self) -> bool:
        """Whether a run is going on."""
        return self.run is not None and self.run.state == RUNNING

    def connected(self, command: list[str], options: list[str], start: Callable[[], Connection]) -> Connection:
        """Return the worker that was started so and runs, or start one. One that was started otherwise leaves.

        Raises:
            WorkerError: it cannot be started.
        """
        found = self.connection
        if found is not None and (found.made_from != (command, options) or not found.is_alive):
            self.disconnect()
        if self.connection is None:
            self.connection = start()
        return self.connection

    def disconnect(self) -> None:
        """Let the worker leave, if there is one."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.close()
        self.connection = None

    def end_run(self) -> None:
        """Forget the run, and its worker if that is gone."""
        if self.run is not None:
            self.messages = [*self.run.problems, *self.run.messages()]
            if self.run.lost_worker:
                self.disconnect()
        self.run = None


STATE = State()
