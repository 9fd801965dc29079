"""Runs one side in its own process, so that it shares no threads or memory and its first stem is a cold start.

The parent writes one command per line ("cold", "warm_up", "floor", "round", "commands" or "memory") and gets one line
of JSON for each, {"ok": ...} or {"error": "..."}. A side that is not being measured is stopped with a signal, because
idle thread pools spin: those of OpenMP and ONNX Runtime would take cores from the measured side. So each side can keep
its own default waiting policy while it runs.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import cycle, pairwise, product
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np

from selva_bench.options import BenchError, BenchOptions
from selva_runtime import SelvaError

RUNTIME, TORCH = "runtime", "torch"
"""Kinds of sides."""
_SIDES = {RUNTIME: ("selva_bench.runtime_side", "RuntimeSide"), TORCH: ("selva_bench.torch_side", "TorchSide")}
_FREEZES = hasattr(signal, "SIGSTOP")
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\":;,()]+/)+")
_WHO = ("dog", "cat", "crow", "engine", "drum", "door", "river", "train", "bell", "horse", "saw", "crowd")
_WHAT = ("near the camera", "in the distance", "on the left", "behind a wall", "on gravel", "at night", "in the rain")


class WorkerError(BenchError):
    """A worker that could not do what was asked, or that has died."""


class WorkerProcess:
    """The parent's handle of a worker, which is frozen between its turns."""

    def __init__(self, kind: str, label: str, options: BenchOptions, folder: Path) -> None:
        self.kind = kind
        self.audio = folder / f"{label}.npy"
        """Where the worker saves its first stem."""
        self._label = label
        self._log = folder / f"{label}.log"
        self.started_s = perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "selva_bench.worker", kind, label, self.audio, pickle.dumps(options).hex()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
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
            raise WorkerError(f"{self._label}: {self._end()}")
        self._signal("SIGSTOP")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self._label}: {without_folders(answer['error'])}")
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
            return "its process was killed, most likely for lack of memory; choose a smaller preset or fewer --stems"
        last = next((line for line in reversed(self._log.read_text(errors="replace").splitlines()) if line), "")
        return f"its process ended with code {code} {without_folders(last)}".rstrip()


def without_folders(text: str) -> str:
    """Cuts absolute paths down to their last name, so that a message can be published."""
    return _FOLDERS.sub("", text)


def main() -> None:
    """Answers commands until stdin ends. Output of libraries goes to stderr."""
    kind, label, audio, options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    side: Any = None
    answer: Any
    for line in sys.stdin:
        try:
            match command := line.strip():
                case "cold":
                    side, answer = _cold(kind, label, pickle.loads(bytes.fromhex(options)), audio)
                case "memory":
                    answer = peak_memory_bytes()
                case _:
                    answer = getattr(side, command)()
            reply = json.dumps({"ok": answer})
        except Exception as error:
            reply = json.dumps({"error": one_line(error)})
        print(reply, file=answers, flush=True)


def _cold(kind: str, label: str, options: BenchOptions, audio: str) -> tuple[Any, dict[str, Any]]:
    """Imports and opens the side, and makes one stem, which is saved in `audio`. Returns the side and the answer."""
    times_s = [perf_counter()]
    module, name = _SIDES[kind]
    make = getattr(import_module(module), name)
    times_s.append(perf_counter())
    side = make(label, options, endless_prompts())
    times_s.append(perf_counter())
    sound = side.first_stem()
    times_s.append(perf_counter())
    np.save(audio, sound)
    seconds = [end - start for start, end in pairwise(times_s)]
    names = ("import_s", "open_s", "first_stem_s")
    return side, {"facts": side.facts, "seconds": dict(zip(names, seconds, strict=True))}


def endless_prompts() -> Iterator[str]:
    """Yields more prompts than the runtime remembers, so that each is new to it; they are the same for every side."""
    return cycle(f"{who} {what}" for what, who in product(_WHAT, _WHO))


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Peak memory of this process, including mapped files, as the kernel counts it.

    getrusage is only the fallback, because its value inherits the parent's.
    """
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


if __name__ == "__main__":
    main()
