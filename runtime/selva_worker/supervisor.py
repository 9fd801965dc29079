"""Run the jobs one after the other in an engine that is started when one comes, and ended when none comes.

Every public method returns at once: what takes time happens in the engine. One lock guards all state. Three kinds of
threads take it: those that call, one that starts jobs and watches the clock, and one for each engine that hears it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from threading import TIMEOUT_MAX, Condition, Thread
from typing import Any

from selva_worker.engine_process import EngineProcess
from selva_worker.folders import AllowedFolders
from selva_worker.job_queue import JobQueue
from selva_worker.jobs import ACTIVE, CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, WRITING, Job
from selva_worker.leftovers import remove_leftovers
from selva_worker.protocol import BUSY, Refused

HARD_CANCEL_S = 2.0
"""A cancelled job ends within this time, if need be with its engine."""
_MARGIN_S = 0.3
"""The time that ending an engine takes."""
_DEATH_S = 1.0
"""How long the supervisor waits for the end of an engine before it ends itself."""
MAX_MESSAGES = 100
"""So many of a job are kept, the first ones."""
_LOADING, _WRITES = "load", "write"
"""Phases that the engine reports."""


class Supervisor:
    """A queue and at most one engine. `settings` are the arguments of `Session`.

    Raises:
        OSError: the state folder cannot be used.
    """

    def __init__(self, settings: dict[str, Any], state: Path, folders: AllowedFolders, *, idle_unload_s: float) -> None:
        self.folders, self.settings, self.idle_unload_s = folders, settings, idle_unload_s
        self.log = state / "engine.log"
        self.jobs = JobQueue(state / "jobs.jsonl")
        self.engine: EngineProcess | None = None
        self._current: Job | None = None
        self._cancel_until_s: float | None = None
        """When the current job is ended by force. None unless it is being cancelled."""
        self._idle_since_s = time.monotonic()
        self._closed = False
        self._changed = Condition()
        self._listeners: list[Callable[[], None]] = []
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener`, which must return at once, after every change. Return what ends that."""
        with self._changed:
            self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def tell(self) -> None:
        """Call all listeners, though nothing changed."""
        with self._changed:
            self._announce()

    def changes(self, since: int) -> tuple[int, list[dict[str, Any]]]:
        """Return the last revision, and what changed after the revision `since`, oldest change first."""
        with self._changed:
            changed = sorted((job for job in self.jobs if job.revision > since), key=lambda job: job.revision)
            return self.jobs.revision, [job.snapshot() for job in changed]

    def submit(self, job: Job) -> dict[str, Any]:
        """Queue a job, or find the one with its key.

        Raises:
            Refused: the key belongs to another request, or too many jobs are waiting.
        """
        with self._changed:
            found = self.jobs.submit(job)
            self._announce()
            return found.snapshot()

    def get(self, job: str) -> dict[str, Any]:
        """Return a job.

        Raises:
            Refused: there is none.
        """
        with self._changed:
            return self.jobs[job].snapshot()

    def list_jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, in the order of their submission."""
        with self._changed:
            return [job.summary() for job in self.jobs]

    def cancel(self, job: str) -> dict[str, Any]:
        """Cancel a job: at once if it waits, soon if it runs. One that has ended stays as it is.

        Raises:
            Refused: there is none.
        """
        with self._changed:
            found = self.jobs[job]
            if found.state == QUEUED:
                self.jobs.change(found, state=CANCELLED)
            elif found is self._current and self._cancel_until_s is None:
                self._cancel(found)
            self._announce()
            return found.snapshot()

    def unload(self) -> None:
        """End the engine, which frees its memory.

        Raises:
            Refused: a job runs.
        """
        with self._changed:
            if self._current is not None:
                raise Refused(BUSY, "a job is running; cancel it first")
            if self.engine is not None:
                self.engine.kill()

    def close(self) -> None:
        """End the engine. Jobs that have not ended are interrupted."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            engine, self.engine = self.engine, None
        if engine is not None:
            engine.kill()
            engine.join(_DEATH_S)
        with self._changed:
            if engine is not None:
                self._tidy(engine)
            for job in list(self.jobs):
                if job.state in (QUEUED, *ACTIVE):
                    self.jobs.change(job, state=INTERRUPTED)
            self._announce()
            self.jobs.close()

    def _announce(self) -> None:
        """Tell everybody that something changed."""
        self._changed.notify_all()
        for listener in list(self._listeners):
            listener()

    def _cancel(self, job: Job) -> None:
        """Ask the engine to stop. While it loads it cannot hear that, and has nothing to lose."""
        assert self.engine is not None
        patience_s = 0.0 if self.engine.loaded is None else HARD_CANCEL_S - _MARGIN_S
        self._cancel_until_s = time.monotonic() + patience_s
        self.engine.send({"cancel": job.id})

    def _run(self) -> None:
        """Start jobs, end those that were cancelled in vain, and end an engine that nobody needs."""
        with self._changed:
            while not self._closed:
                ending = self.engine is not None and self.engine.ending
                if self._current is None and not ending and (job := self.jobs.next()) is not None:
                    self._start(job)
                wait_s = None if self.engine is None or self.engine.ending else self._end_at_s() - time.monotonic()
                if wait_s is not None and wait_s <= 0:
                    assert self.engine is not None
                    self.engine.kill()
                    wait_s = None
                self._changed.wait(None if wait_s is None else min(wait_s, TIMEOUT_MAX))

    def _end_at_s(self) -> float:
        """When the engine is to be ended, unless something changes before."""
        if self._current is None:
            return self._idle_since_s + self.idle_unload_s
        return math.inf if self._cancel_until_s is None else self._cancel_until_s

    def _start(self, job: Job) -> None:
        try:
            if self.engine is None:
                self.engine = EngineProcess(self.settings, self.log, heard=self._heard, ended=self._engine_ended)
        except OSError as error:
            self.jobs.change(job, state=FAILED, error=self._error(f"the engine cannot be started: {error}"))
        else:
            self._current = job
            loading = _progress(_LOADING) if self.engine.loaded is None else None
            self.jobs.change(job, state=RUNNING, progress=loading, error=None)
            self.engine.send({"id": job.id, "kind": job.kind, "request": job.request})
        self._announce()

    def _heard(self, engine: EngineProcess, message: dict[str, Any]) -> None:
        with self._changed:
            if engine is not self.engine:
                return
            if "loaded" in message:
                engine.loaded = message["loaded"]
            job = self._current
            if job is None or message.get("job") != job.id:
                return
            if "phase" in message:
                progress = _progress(message["phase"], message["done"], message["total"])
                writes = message["phase"] == _WRITES and job.state != WRITING
                self.jobs.change(job, progress=progress, **({"state": WRITING} if writes else {}))
                self._announce()
            elif "say" in message:
                said = {"kind": message["say"], "text": message["text"]}
                self.jobs.change(job, messages=[*job.messages, said][:MAX_MESSAGES])
                self._announce()
            elif "result" in message:
                self._end(state=DONE, result=message["result"])
            elif "cancelled" in message:
                self._end(state=CANCELLED)
            else:
                self._end(state=FAILED, error=self._error(message["failed"]))

    def _end(self, **changes: Any) -> None:
        """Note that the current job has ended."""
        assert self._current is not None
        self.jobs.change(self._current, progress=None, **changes)
        self._current, self._cancel_until_s = None, None
        self._idle_since_s = time.monotonic()
        self._announce()

    def _engine_ended(self, engine: EngineProcess) -> None:
        with self._changed:
            if engine is not self.engine:
                return
            self.engine = None
            self._tidy(engine)
            if self._current is None:
                self._announce()
            elif self._cancel_until_s is not None:
                self._end(state=CANCELLED)
            else:
                memory = f"{engine.peak_memory_bytes / 1e6:.0f} MB" if engine.peak_memory_bytes else "unknown"
                reason = f"the engine ended with exit code {engine.exit_code}, peak memory {memory}; see {self.log}"
                self._end(state=FAILED, error=self._error(reason, engine))

    def _error(self, message: str, engine: EngineProcess | None = None) -> dict[str, Any]:
        return {
            "message": message,
            "exit_code": engine.exit_code if engine else None,
            "peak_memory_bytes": engine.peak_memory_bytes if engine else None,
            "log": str(self.log),
        }

    def _tidy(self, engine: EngineProcess) -> None:
        """Remove the unfinished files of the current job, whose engine is dead."""
        if self._current is not None and engine.temporary:
            remove_leftovers(self._current.request, engine.temporary)


def _progress(phase: str, done: int | None = None, total: int | None = None) -> dict[str, Any]:
    return {
        "phase": phase,
        "fraction": done / total if done is not None and total else None,
        "done": done,
        "total": total,
    }
