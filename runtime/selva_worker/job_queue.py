"""All jobs of a worker, in the order in which they run, and their changes. Not locked: the supervisor is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selva_worker.client import ENDED
from selva_worker.jobs import INTERRUPTED, QUEUED, Job
from selva_worker.journal import Journal
from selva_worker.protocol import FAILED, KEY_TAKEN, QUEUE_FULL, UNKNOWN_JOB, Refused

MAX_QUEUED = 1000
MAX_ENDED = 1000
"""So many jobs are remembered after their end."""


class JobQueue:
    """The jobs, by id. Each change gets the next revision and a line in the journal.

    Raises:
        OSError: the journal cannot be read or written.
    """

    def __init__(self, journal: Path) -> None:
        self.revision = 0
        self._journal = Journal(journal, MAX_ENDED)
        self._jobs = {job.id: job for job in self._journal.jobs}
        self._keys = {job.key: job for job in self._journal.jobs if job.key is not None}

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __getitem__(self, job: str) -> Job:
        if job not in self._jobs:
            raise Refused(UNKNOWN_JOB, f"there is no job {job!r}; it may have ended long ago")
        return self._jobs[job]

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def submit(self, new: Job) -> Job:
        """Queue a job, or return the one that has its key. One that was interrupted is queued again.

        Raises:
            Refused: the key belongs to another request, too many jobs are waiting, or the disk is full.
        """
        known = self._keys.get(new.key) if new.key is not None else None
        if known is not None and not known.is_same_work(new):
            raise Refused(KEY_TAKEN, f"the key {new.key!r} was used for another request; choose a new key")
        if known is not None and known.state != INTERRUPTED:
            return known
        if sum(job.state == QUEUED for job in self) >= MAX_QUEUED:
            raise Refused(QUEUE_FULL, f"{MAX_QUEUED} jobs are waiting; submit this one later")
        if known is not None:
            self.change(known, state=QUEUED, progress=None, urgent=new.urgent)
            return known
        try:
            self._journal.add(new)
        except OSError as error:
            raise Refused(FAILED, f"the journal cannot be written ({error.strerror}); free some space") from error
        self._jobs[new.id] = new
        if new.key is not None:
            self._keys[new.key] = new
        self.change(new)
        return new

    def next(self) -> Job | None:
        """Return the job to run now: the first that a user waits for, or else the first."""
        waiting = [job for job in self if job.state == QUEUED]
        return min(waiting, key=lambda job: not job.urgent, default=None)

    def change(self, job: Job, **changes: Any) -> None:
        """Set fields of a job. Its state is written down before anybody sees it."""
        for name, value in changes.items():
            setattr(job, name, value)
        if "state" in changes:
            self._journal.change(job)
        self.revision += 1
        job.revision = self.revision
        if job.state in ENDED:
            self._forget()

    def _forget(self) -> None:
        ended = [job for job in self if job.state in ENDED]
        for job in ended[:-MAX_ENDED]:
            del self._jobs[job.id]
            if job.key is not None:
                del self._keys[job.key]
