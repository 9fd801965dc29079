"""What survives the supervisor: one line for each change of a job's state, only ever appended.

A line reaches the file before the client hears of the change. If the process dies between the two, the line may be cut
short; such a last line is left out. At its start the journal is written anew with the last jobs only.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from selva_bundle.atomic import atomic_write
from selva_worker.client import ENDED
from selva_worker.jobs import INTERRUPTED, Job

_NEW = ("kind", "request", "key", "urgent", "submitted_s")
_CHANGING = ("id", "state", "result", "error")


class Journal:
    """The file that keeps jobs.

    Raises:
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.jobs = _read(path)[-keep:]
        """The jobs of earlier supervisors, in the order of their submission."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.writelines(_line(job, _NEW + _CHANGING) for job in self.jobs)
        path.chmod(0o600)
        self._file = path.open("ab", buffering=0)
        self._is_torn = False
        """Whether the last line may be without its end."""

    def add(self, job: Job) -> None:
        """Append a new job.

        Raises:
            OSError: it cannot be written, so the job must not be taken.
        """
        self._append(_line(job, _NEW + _CHANGING))

    def change(self, job: Job) -> None:
        """Append the state of a known job. If the disk is full, a job that ended is interrupted for the next start."""
        with suppress(OSError):
            self._append(_line(job, _CHANGING))

    def _append(self, line: bytes) -> None:
        if self._is_torn:
            line = b"\n" + line
        self._is_torn = True
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._is_torn = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(job: Job, names: Iterable[str]) -> bytes:
    return json.dumps({name: getattr(job, name) for name in names}).encode() + b"\n"


def _read(path: Path) -> list[Job]:
    """Read all jobs. What was not at an end is interrupted."""
    found: dict[str, Job] = {}
    with suppress(FileNotFoundError), path.open("rb") as file:
        for text in file:
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                _apply(found, json.loads(text))
    for job in found.values():
        if job.state not in ENDED:
            job.state = INTERRUPTED
    return list(found.values())


def _apply(found: dict[str, Job], entry: dict[str, Any]) -> None:
    if "kind" in entry:
        found[entry["id"]] = Job(**entry)
    else:
        for name, value in entry.items():
            setattr(found[entry["id"]], name, value)
