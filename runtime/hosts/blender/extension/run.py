"""What was asked for, from the start of the worker to the files of the stems, in steps that return at once.

Blender's timer takes the steps where there is a window; without one, a loop does. Nothing here needs Blender.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .client import ENDED, WorkerError
from .connection import Connection

PHASES = {
    "wait": "Waiting for the worker",
    "load": "Loading the model",
    "verify": "Checking the model",
    "decode": "Reading the video",
    "encode": "Watching the video",
    "text": "Reading the prompts",
    "select": "Choosing what sounds",
    "conditions": "Preparing",
    "step": "Generating",
    "vocode": "Making the sound",
    "write": "Writing the stems",
}
RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"


@dataclass
class Task:
    """One request, and what becomes of its stems."""

    request: dict[str, Any]
    """For `job.submit`."""
    place: Any
    """Whatever the caller needs to put the stems in their places."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    job: dict[str, Any] | None = None
    """The job as the worker last told. None before it was submitted."""

    @property
    def ended(self) -> bool:
        """Whether the worker is done with it."""
        return self.job is not None and self.job["state"] in ENDED


class Run:
    """Tasks on their way. `connect` starts a worker or returns the one that is there; `step` until `state` changes.

    A run without tasks ends when the worker has answered.
    """

    def __init__(self, connect: Callable[[], Connection], tasks: list[Task]) -> None:
        self.tasks = tasks
        self.state = RUNNING
        self.text = "Starting the worker"
        """What is going on, for the user."""
        self.fraction: float | None = None
        """How much of it is done. None while nobody can know."""
        self.problems: list[str] = []
        """What went wrong, a line each."""
        self.connection: Connection | None = None
        self.lost_worker = False
        """Whether the next run needs another worker."""
        self._connect = connect
        self._cancelled = False

    def step(self) -> None:
        """Do what can be done now."""
        if self.state != RUNNING:
            return
        try:
            self._step()
        except WorkerError as error:
            self._fail(str(error), lost=error.code is None)
        except OSError as error:
            self._fail(str(error), lost=False)

    def cancel(self) -> None:
        """Cancel every task. Those that the worker has end within two seconds: keep stepping."""
        self._cancelled = True
        if self.state != RUNNING:
            return
        try:
            for task in self.tasks:
                if task.job is not None and not task.ended and self.connection is not None:
                    task.job = self.connection.worker.cancel(task.job["id"])
        except WorkerError as error:
            self._fail(str(error), lost=error.code is None)

    def messages(self) -> list[str]:
        """Return what the user should read about the stems, each line once."""
        told = [message["text"] for task in self.tasks if task.job is not None for message in task.job["messages"]]
        return list(dict.fromkeys(told))

    def results(self) -> list[tuple[Any, dict[str, Any]]]:
        """Return the place and the result of each task that is done."""
        done = [(task.place, task.job) for task in self.tasks if task.job is not None]
        return [(place, job["result"]) for place, job in done if job["state"] == "done"]

    def _step(self) -> None:
        if self._cancelled and all(task.job is None for task in self.tasks):
            self.state = CANCELLED
            self.lost_worker = self.connection is not None and self.connection.facts is None
            return
        self.connection = self.connection or self._connect()
        if self.connection.ready():
            self._submit(self.connection)
            self._look(self.connection)

    def _submit(self, connection: Connection) -> None:
        waiting = [task for task in self.tasks if task.job is None]
        if not waiting:
            return
        folders: set[str] = set()
        for task in waiting:
            os.makedirs(task.request["out"], exist_ok=True)
            folders |= {task.request["out"], os.path.dirname(task.request["video"])}
        connection.worker.call("initialize", folders=sorted(folders))
        for task in waiting:
            task.job = connection.worker.submit(task.request, key=task.key, urgent=True)

    def _look(self, connection: Connection) -> None:
        """The worker does one job after the other, so the first that has not ended tells all."""
        for number, task in enumerate(self.tasks, 1):
            if task.job is not None and not task.ended:
                task.job = connection.worker.get(task.job["id"])
            if task.job is not None and not task.ended:
                self._tell(task.job, number)
                return
        states = [task.job["state"] for task in self.tasks if task.job is not None]
        self.problems += [task.job["error"]["message"] for task in self.tasks if task.job and task.job["error"]]
        if self._cancelled or CANCELLED in states:
            self.state = CANCELLED
        else:
            self.state = DONE if all(state == "done" for state in states) else FAILED

    def _tell(self, job: dict[str, Any], number: int) -> None:
        progress = job["progress"] or {"phase": "wait", "fraction": None}
        text = PHASES.get(progress["phase"], progress["phase"])
        if self._cancelled:
            text = "Cancelling"
        self.text = text if len(self.tasks) == 1 else f"{text} ({number} of {len(self.tasks)})"
        self.fraction = progress["fraction"]

    def _fail(self, problem: str, *, lost: bool) -> None:
        log = f"; its log: {self.connection.log}" if lost and self.connection is not None else ""
        self.problems.append(problem + log)
        self.state, self.lost_worker = FAILED, lost
        for task in self.tasks:
            if not lost and task.job is not None and not task.ended and self.connection is not None:
                self._abandon(self.connection, task)

    def _abandon(self, connection: Connection, task: Task) -> None:
        assert task.job is not None
        try:
            connection.worker.cancel(task.job["id"])
        except WorkerError:
            self.lost_worker = True
