"""Measures all sides in turn, round by round, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from selva_bench.clip import clip_of
from selva_bench.errors import BenchError
from selva_bench.job import BF16_SUFFIX, CPU_BACKENDS, RUNTIME, TORCH, SideJob
from selva_bench.machine import gpu_used_bytes
from selva_bench.process import WorkerError, WorkerProcess
from selva_runtime.backends.executor import BF16, EXACT

AUTO = "auto"
BASELINES = ("torch", "torch-compile")


@dataclass(kw_only=True)
class Side:
    """A compared program and its measurements."""

    job: SideJob
    device: str = "cpu"
    """Hardware it runs on: "cpu" or "cuda"."""
    unavailable: str | None = None
    """Why it cannot run here; if set, there are no measurements."""
    facts: dict[str, Any] = field(default_factory=dict)
    cold: dict[str, float] = field(default_factory=dict)
    """Seconds in a fresh process: importing, opening, the first stem, and all of it with the interpreter's start."""
    floor: dict[str, Any] | None = None
    """For PyTorch on a CPU: the time that its arithmetic alone would take."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Results of the sides' `round`."""
    audio: npt.NDArray[np.float32] | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare. `pattern` is the job of every side, without the fields that differ between sides."""

    pattern: SideJob
    backends: tuple[str, ...]
    backends_optional: bool
    """Whether to report and skip a backend that cannot run here, instead of raising an error."""
    baselines: tuple[str, ...]
    rounds: int
    video: Path | None


def measure(plan: Plan, say: Callable[[str], None]) -> list[Side]:
    """Measures every side of the plan, backends first. Never leaves a process behind.

    Raises:
        BenchError: a side cannot run or fails.
    """
    with tempfile.TemporaryDirectory(prefix="selva-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        video = clip_of(plan.video, plan.pattern.duration_s, folder)
        pattern = replace(plan.pattern, video=str(video))
        sides: list[tuple[Side, WorkerProcess | None]] = []

        def start(job: SideJob, *, optional: bool) -> None:
            say(f"{job.label}: cold start")
            sides.append(_start(replace(job, audio=str(folder / f"{job.label}.npy")), folder, stack, optional))

        for label in plan.backends:
            start(_runtime_job(pattern, label), optional=plan.backends_optional)
        if all(side.unavailable for side, _ in sides):
            raise BenchError("; ".join(f"{side.job.label}: {side.unavailable}" for side, _ in sides))
        devices = dict.fromkeys(side.device for side, _ in sides if side.unavailable is None)
        for device in devices:
            for baseline in plan.baselines:
                job = replace(pattern, label=f"{baseline}-{device}", kind=TORCH, backend=device)
                start(replace(job, compiled=baseline == "torch-compile"), optional=True)
        running = [(side, worker) for side, worker in sides if worker is not None]
        _rounds(running, plan.rounds, say)
        for side, worker in running:
            side.host_bytes = worker.ask("memory")
        return [side for side, _ in sides]


def _runtime_job(pattern: SideJob, label: str) -> SideJob:
    """Returns the job of a backend, possibly in bfloat16: "openvino-bf16"."""
    backend = label.removesuffix(BF16_SUFFIX)
    return replace(pattern, label=label, kind=RUNTIME, backend=backend, precision=EXACT if backend == label else BF16)


def _start(job: SideJob, folder: Path, stack: ExitStack, optional: bool) -> tuple[Side, WorkerProcess | None]:
    """Starts a side and warms it up. If it cannot run, there is no worker, and the side holds the reason."""
    side = Side(job=job, device=job.backend)
    before_bytes = gpu_used_bytes()
    worker = stack.enter_context(WorkerProcess(job, folder))
    try:
        cold = worker.ask("cold")
        until_first_stem_s = perf_counter() - worker.started_s
        worker.ask("warm_up")
        side.floor = worker.ask("floor")
    except WorkerError as error:
        worker.close()
        if not optional:
            raise
        side.unavailable = str(error).removeprefix(f"{job.label}: ")
        return side, None
    side.facts, side.cold = cold["facts"], {**cold["seconds"], "total_s": until_first_stem_s}
    if job.backend == AUTO:
        side.job = replace(job, label=job.label.replace(AUTO, side.facts["backend"]))
    side.device = "cpu" if side.facts["backend"] in CPU_BACKENDS else "cuda"
    side.audio = np.load(job.audio)
    after_bytes = gpu_used_bytes()
    if side.device != "cpu" and before_bytes is not None and after_bytes is not None:
        side.device_bytes = after_bytes - before_bytes
    return side, worker


def _rounds(running: Sequence[tuple[Side, WorkerProcess]], rounds: int, say: Callable[[str], None]) -> None:
    for number in range(1, rounds + 1):
        for side, worker in running:
            record = worker.ask("round")
            side.rounds.append(record)
            say(f"round {number}/{rounds}: {side.job.label}: first stem {record['totals']['first_stem'][0]:.2f} s")


def snr_db(sound: npt.NDArray[np.float32] | None, reference: npt.NDArray[np.float32] | None) -> float | None:
    """Signal-to-noise ratio of a sound against the reference; None if they are equal or cannot be compared."""
    if sound is None or reference is None or sound.shape != reference.shape:
        return None
    noise = float(np.square(sound.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None
