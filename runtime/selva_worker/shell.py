"""`selva-generate --worker`: the request and the report are the same as without, but a running worker does the work.

Nothing here imports NumPy or a backend, so the command costs little more than the job.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

from selva_bundle.errors import BackendError, Cancelled, RequestError
from selva_runtime.command.records import GenerateReport, GenerateRequest, StemFile
from selva_worker.client import ENDED, Worker, WorkerError
from selva_worker.jobs import CANCELLED, DONE, INTERRUPTED, QUEUED
from selva_worker.requests import FOUND_OR_NOT, GENERATE_OPTIONS

_POLL_S = 0.05
_ONE_MODEL = "it has one model"
_NOT_THERE = {
    "keep_partial": "a worker keeps no partial stems",
    "bed": _ONE_MODEL,
    "bed_prompt": _ONE_MODEL,
    "bed_gain_db": _ONE_MODEL,
}
"""Why a worker does not do what some options ask for."""


def check_options(given: Mapping[str, str]) -> None:
    """Check that a worker's job can do what the user asked for. `given` are options as written, by their field.

    Raises:
        RequestError: it cannot.
    """
    for name in (field.name for field in fields(GenerateRequest)):
        if name not in GENERATE_OPTIONS and name in given:
            reason = _NOT_THERE.get(name, "its start fixed that")
            raise RequestError(f"{given[name]} has no effect on a running worker ({reason}); leave it or --worker out")


def generate_over_worker(
    request: GenerateRequest,
    *,
    say: Callable[[str, str], None],
    show: Callable[[str, int, int], None],
    cancel: Event,
) -> GenerateReport:
    """Let the worker of this user generate, and wait for it. The worker gets the folders of the request allowed.

    Raises:
        BackendError: no worker is running, it left, or the job failed.
        RequestError: the worker refused the request.
        Cancelled: `cancel` was set, or another client cancelled the job.
    """
    with _worker_errors():
        worker = Worker.find()
        if worker is None:
            raise BackendError("no worker is running; start one with `selva-worker &`, or leave out --worker")
        found = _finished(worker, _absolute(request, worker), _Shown(say, show), cancel)
    if found["state"] == DONE:
        return _report(found["result"], request)
    if found["state"] == CANCELLED:
        raise Cancelled("the job was cancelled")
    if found["state"] == INTERRUPTED:
        raise BackendError("the worker left before the job was done; start it again")
    raise BackendError(found["error"]["message"])


@contextmanager
def _worker_errors() -> Iterator[None]:
    try:
        yield
    except WorkerError as error:
        raise (BackendError if error.code is None else RequestError)(str(error)) from error


def _absolute(request: GenerateRequest, worker: Worker) -> dict[str, Any]:
    """Return the job's request, and have its folders allowed: the worker may do nothing that this user may not."""
    job = {name: getattr(request, name) for name in GENERATE_OPTIONS}
    names = [name for name in ("video", "out", "cuts", "mask") if job[name] is not None]
    if request.cuts in FOUND_OR_NOT:
        names.remove("cuts")
    job |= {name: os.path.realpath(job[name]) for name in names}
    job["timelines"] = [os.path.realpath(path) for path in request.timelines]
    files = [job[name] for name in names if name != "out"] + job["timelines"]
    folders = {_existing(folder) for folder in (job["out"], *map(os.path.dirname, files))}
    try:
        json.dumps(job, allow_nan=False)
    except ValueError as error:
        raise RequestError("nan and inf are no numbers to generate with; give seconds and factors") from error
    worker.call("initialize", folders=sorted(folders))
    return job


def _existing(folder: str) -> str:
    """Return the folder, or the nearest one above it that exists."""
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder


def _finished(worker: Worker, job: dict[str, Any], shown: _Shown, cancel: Event) -> dict[str, Any]:
    """Submit a job and return it when it has ended. If this is interrupted, the job is cancelled."""
    found = worker.submit(job, urgent=True)
    told = False
    try:
        while found["state"] not in ENDED:
            time.sleep(_POLL_S)
            now = worker.call("job.get", job=found["id"], since=found["revision"])
            found = now if "state" in now else found
            shown.show(found)
            if cancel.is_set() and not told:
                told = True
                worker.cancel(found["id"])
    except BaseException:
        if not told:
            worker.cancel(found["id"])
        raise
    return found


class _Shown:
    """What the user has seen of a job."""

    def __init__(self, say: Callable[[str, str], None], show: Callable[[str, int, int], None]) -> None:
        self._say, self._show = say, show
        self._messages = 0
        self._waiting: set[str] = set()

    def show(self, job: Mapping[str, Any]) -> None:
        """Show what is new."""
        for message in job["messages"][self._messages :]:
            self._say(message["kind"], message["text"])
        self._messages = len(job["messages"])
        progress = job["progress"]
        if job["state"] == QUEUED:
            self._wait("the worker is busy; this job waits for its turn")
        elif progress is not None and progress["total"]:
            self._show(progress["phase"], progress["done"], progress["total"])
        elif progress is not None:
            self._wait("the worker loads the model; the next job will not need that")

    def _wait(self, why: str) -> None:
        if why not in self._waiting:
            self._waiting.add(why)
            self._say("notice", why)


def _report(result: dict[str, Any], request: GenerateRequest) -> GenerateReport:
    """Return the report with its paths as the user gave them."""
    parents = {os.path.dirname(os.path.realpath(path)): Path(path).parent for path in request.timelines}
    given = {
        "stems": [_stem(stem, request.out) for stem in result["stems"]],
        "video": None if request.video is None else os.fspath(request.video),
        "mask": None if request.mask is None else os.fspath(request.mask),
        "timelines": [str(parents[os.path.dirname(path)] / Path(path).name) for path in result["timelines"]],
    }
    report: GenerateReport = _made(GenerateReport, {**result, **given})
    return report


def _stem(stem: dict[str, Any], out: str | os.PathLike[str]) -> StemFile:
    files = {name: str(Path(out, Path(stem[name]).name)) for name in ("file", "video") if stem[name] is not None}
    found: StemFile = _made(StemFile, {**stem, **files})
    return found


def _made(kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
