"""Runs one side in its own process, so that it shares no threads or memory and its first stem is a cold start.

    python -m selva_bench.worker JOB

It reads one command per line from stdin ("cold", "warm_up", "floor", "round" or "memory") and answers each with one
line of JSON, {"ok": ...} or {"error": "..."}. Output of libraries goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from selva_bench.job import RUNTIME, TORCH, SideJob
from selva_runtime import SelvaError


class Worker:
    """The commands of one side."""

    def __init__(self, job: SideJob) -> None:
        self._job = job
        self._side: Any = None

    def cold(self) -> dict[str, Any]:
        """Imports, opens, and makes one stem, which is saved in the job's audio file."""
        times_s = [perf_counter()]
        module, name = (".runtime_side", "RuntimeSide") if self._job.kind == RUNTIME else (".torch_side", "TorchSide")
        make = getattr(import_module(module, __package__), name)
        times_s.append(perf_counter())
        self._side = make(self._job)
        times_s.append(perf_counter())
        audio = self._side.first_stem()
        times_s.append(perf_counter())
        np.save(self._job.audio, audio)
        seconds = [end - start for start, end in pairwise(times_s)]
        return {
            "facts": self._side.facts,
            "seconds": dict(zip(("import_s", "open_s", "first_stem_s"), seconds, strict=True)),
        }

    def warm_up(self) -> None:
        """Runs the side until it is warm."""
        self._side.warm_up()

    def floor(self) -> dict[str, Any] | None:
        """Times of the arithmetic alone, if the side is PyTorch on a CPU."""
        found: dict[str, Any] | None = self._side.floor() if self._job.kind == TORCH else None
        return found

    def round(self) -> dict[str, Any]:
        """Totals and stages of one round, seconds."""
        return self._side.round()  # type: ignore[no-any-return]

    def memory(self) -> int | None:
        """Peak memory of this process in bytes, including mapped files."""
        return peak_memory_bytes()


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """The kernel's peak value. getrusage is only the fallback, because its value inherits the parent's."""
    try:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def one_line(error: BaseException) -> str:
    """The first line of a message, with the type of the error if it is not one of ours."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, SelvaError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def main() -> None:
    """Answers commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(SideJob.from_json(sys.argv[1]))
    commands: dict[str, Callable[[], Any]] = {
        "cold": worker.cold,
        "warm_up": worker.warm_up,
        "floor": worker.floor,
        "round": worker.round,
        "memory": worker.memory,
    }
    for line in sys.stdin:
        try:
            answer = {"ok": commands[line.strip()]()}
        except Exception as error:
            answer = {"error": one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
