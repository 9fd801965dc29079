"""The engine: a child of the supervisor that owns the `Session`. It is started as `python -m selva_worker.engine`.

It reads one JSON object a line on its stdin and writes its answers likewise. A thread reads, so a cancellation is heard
at once, and the end of the input, which is the death of the supervisor, ends the process whatever it computes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from selva_bundle.atomic import TEMPORARY
from selva_bundle.errors import Cancelled, SelvaError
from selva_worker.jobs import ENCODE, GENERATE
from selva_worker.leftovers import remove_leftovers

if TYPE_CHECKING:
    from selva_worker.remembering_session import RememberingSession

_REPORT_S = 0.1
"""Progress within a phase is reported no more often."""


class Engine:
    """Does one job after the other with one session, which is opened for the first of them."""

    def __init__(self, settings: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
        self._settings, self._send = settings, send
        self._session: RememberingSession | None = None
        self._todo: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._cancelled: dict[str, Event] = {}
        self._request: dict[str, Any] = {}
        """Of the current job."""

    def listen(self) -> None:
        """Take messages until the supervisor is gone, then end the process."""
        for text in sys.stdin.buffer:
            message = json.loads(text)
            if "cancel" in message:
                if (event := self._cancelled.get(message["cancel"])) is not None:
                    event.set()
            else:
                self.take(message)
        remove_leftovers(self._request, TEMPORARY)
        os._exit(0)  # the main thread may be anywhere

    def take(self, message: dict[str, Any]) -> None:
        """Take a job to do."""
        self._cancelled[message["id"]] = Event()
        self._todo.put(message)

    def work(self) -> None:
        """Do jobs for ever."""
        while True:
            message = self._todo.get()
            self._request = message["request"]
            self._do(message["id"], message["kind"], message["request"])
            del self._cancelled[message["id"]]

    def _do(self, job: str, kind: str, request: dict[str, Any]) -> None:
        try:
            report = _Reporter(job, self._send, self._cancelled[job])
            session = self._opened(report)
            result = self._result(session, kind, request, report)
        except Cancelled:
            self._send({"job": job, "cancelled": True})
        except Exception as error:
            if self._session is not None:
                self._session.forget()  # the clip may be what failed
            self._send({"job": job, "failed": _explained(error)})
        else:
            self._send({"job": job, "result": result})

    def _opened(self, report: _Reporter) -> RememberingSession:
        """Open the session if this is the first job."""
        if self._session is None:
            report.phase("load")
            from selva_runtime.command.deliver import bundle_folder, default_bundle
            from selva_worker.remembering_session import RememberingSession

            settings = dict(self._settings)
            named = settings["bundle"]
            folder = bundle_folder(named) if named else default_bundle()
            self._settings["bundle"] = settings["bundle"] = str(folder)
            self._session = RememberingSession(**settings)
            self._send({"loaded": {**asdict(self._session.info), "bundle": settings["bundle"]}})
        return self._session

    def _result(
        self, session: RememberingSession, kind: str, request: dict[str, Any], report: _Reporter
    ) -> dict[str, Any]:
        if kind == GENERATE:
            from selva_runtime.command.deliver import generate_files
            from selva_runtime.command.records import GenerateRequest

            given: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in request.items()
            }
            asked = GenerateRequest(**given, bundle=self._settings["bundle"])
            made = generate_files(asked, session=session, say=report.say, progress=report, cancel=report.cancel)
            return asdict(made)
        if kind == ENCODE:
            from selva_runtime.command.checks import read_cuts_option

            cuts = read_cuts_option(request.pop("cuts", "auto"))
            clip = session.encode(request.pop("video"), cuts=cuts, **request, progress=report, cancel=report.cancel)
            return {
                "duration_s": clip.duration_s,
                "start_s": clip.start_s,
                "source_duration_s": clip.source_duration_s,
                "warnings": clip.warnings,
                "cuts_s": [shot.first_frame / session.info.fps for shot in clip.shots[1:]],
            }
        session.verify(report)
        return {}


def _explained(error: Exception) -> str:
    """Return a failure in one line. One that nobody foresaw goes to the log too."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, (SelvaError, OSError)):
        return str(error)
    sys.excepthook(type(error), error, error.__traceback__)
    return f"unexpected error: {type(error).__name__}: {error}"


class _Reporter:
    """Progress of one job. It raises `Cancelled` at the first call after the job was cancelled."""

    def __init__(self, job: str, send: Callable[[dict[str, Any]], None], cancel: Event) -> None:
        self.cancel = cancel
        self._job, self._send = job, send
        self._last, self._last_s = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._last or done == total or now_s - self._last_s >= _REPORT_S:
            self._last_s = now_s
            self.phase(stage, done, total)
        if self.cancel.is_set():
            raise Cancelled("cancelled")

    def phase(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """Report a phase."""
        self._last = stage
        self._send({"job": self._job, "phase": stage, "done": done, "total": total})

    def say(self, kind: str, text: str) -> None:
        """Report a line for the user."""
        self._send({"job": self._job, "say": kind, "text": text})


def main() -> None:
    """Run the engine on the pipes that the supervisor made. Its argument holds the settings of the session."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints belongs in the log
    lock = Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message).encode() + b"\n")

    engine = Engine(json.loads(sys.argv[1]), send)
    send({"temporary": TEMPORARY})
    Thread(target=engine.listen, daemon=True).start()
    engine.work()


if __name__ == "__main__":
    main()
