"""Controls a worker from the parent process: starts, asks, freezes and kills it.

A side that is not being measured is stopped with a signal, because idle thread pools spin: those of OpenMP and ONNX
Runtime would take cores from the measured side. So each side can keep its own default waiting policy while it runs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from selva_bench.errors import BenchError
from selva_bench.job import SideJob

_FREEZES = hasattr(signal, "SIGSTOP")
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\":;,()]+/)+")


class WorkerError(BenchError):
    """A worker that could not do what was asked, or that has died."""


class WorkerProcess:
    """A worker process, frozen between its turns."""

    def __init__(self, job: SideJob, folder: Path) -> None:
        self.job = job
        self._log = folder / f"{job.label}.log"
        self.started_s = perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", job.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
                # Only the parent gets Ctrl-C, and it kills the workers. They stay in its session, so that the system
                # ends a frozen worker if the parent dies.
                process_group=0 if _FREEZES else None,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str) -> Any:
        """Thaws the worker, sends a command and returns its answer.

        Raises:
            WorkerError: the worker reports an error, or has died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._signal("SIGCONT")
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise WorkerError(f"{self.job.label}: {self._end()}")
        self._signal("SIGSTOP")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.job.label}: {without_folders(answer['error'])}")
        return answer["ok"]

    def close(self) -> None:
        """Kills the worker, frozen or not; it has nothing left to answer."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _signal(self, name: str) -> None:
        if _FREEZES and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))

    def _end(self) -> str:
        """Describes how a silent worker ended, for a message."""
        code = self._process.wait()
        if code == -9:
            return "its process was killed, most likely for memory; choose a smaller preset or fewer --stems"
        last = next((line for line in reversed(self._log.read_text(errors="replace").splitlines()) if line), "")
        return f"its process ended with code {code} {without_folders(last)}".rstrip()


def without_folders(text: str) -> str:
    """Cuts absolute paths down to their last name, so that a message can be published."""
    return _FOLDERS.sub("", text)
