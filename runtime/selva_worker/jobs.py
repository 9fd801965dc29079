"""A job, its states and what a client sees of it."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from selva_worker.client import ENDED

QUEUED, RUNNING, WRITING = "queued", "running", "writing"
DONE, FAILED, CANCELLED, INTERRUPTED = ENDED
ACTIVE = (RUNNING, WRITING)
GENERATE, ENCODE, LOAD = "generate", "encode", "load"
"""Kinds of jobs."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A piece of work for the engine. `JobQueue` alone changes it."""

    kind: str
    request: dict[str, Any]
    """Arguments of `GenerateRequest`, or of `Session.encode`."""
    key: str | None = None
    """The client's name for this work. It runs at most once."""
    urgent: bool = False
    """A user waits for it: it goes before the others."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = QUEUED
    submitted_s: float = field(default_factory=time.time)
    """Unix time."""
    progress: dict[str, Any] | None = None
    """{"phase", "fraction", "done", "total"}. The numbers are None while nobody can know them, as when the model
    loads."""
    messages: list[dict[str, str]] = field(default_factory=list)
    """{"kind", "text"} of what the user should read: "notice" or "warning", and a line."""
    result: dict[str, Any] | None = None
    """The engine's report, once the job is done."""
    error: dict[str, Any] | None = None
    """{"message", "exit_code", "peak_memory_bytes", "log"} of a failed job. The numbers are None unless the
    engine died."""
    revision: int = 0
    """Grows with every change of any job."""

    def snapshot(self) -> dict[str, Any]:
        """Return what a client sees."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """Return the same without the request, the messages and the result, which may be long."""
        seen = asdict(self)
        del seen["request"], seen["messages"], seen["result"]
        return seen

    def is_same_work(self, other: Job) -> bool:
        """Whether another job asks for the same."""
        return (self.kind, json.dumps(self.request, sort_keys=True)) == (
            other.kind,
            json.dumps(other.request, sort_keys=True),
        )
