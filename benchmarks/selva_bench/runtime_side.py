"""Times the runtime: it encodes the video once per round, and generates stems of it.

The time of a call is split into stages by its progress calls alone. Every backend reports progress, even one that
replays whole runs of steps on a GPU. The time since the last report belongs to the stage that reports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np

from selva_bench.options import BenchError, BenchOptions
from selva_bench.statistics import round_totals
from selva_runtime.backends.executor import COMPUTE_PRECISIONS, EXACT
from selva_runtime.results import Clip, Stem
from selva_runtime.session import Session


class StageClock:
    """A progress callback that records the time of each report. Make a new one for each call."""

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self._now = now
        self._start_s = self._last_s = now()
        self._reports: list[tuple[str, int, int, float]] = []
        self.elapsed_s = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Records the time since the last report for `stage`; the signature is `selva_runtime.session.Progress`."""
        now_s = self._now()
        self._reports.append((stage, done, total, now_s - self._last_s))
        self._last_s = now_s

    def stop(self) -> None:
        """Stops the clock; call it when the work is done."""
        self.elapsed_s = self._now() - self._start_s

    def total_s(self, stage: str) -> float:
        """Seconds of all reports of `stage`."""
        return sum(seconds for name, _, _, seconds in self._reports if name == stage)

    def steps_s(self) -> list[float]:
        """Seconds of each step; steps reported together share their time evenly."""
        times: list[float] = []
        for stage, done, _, seconds in self._reports:
            if stage == "step":
                count = done - len(times)
                times += [seconds / count] * count
        return times


def backend_and_arithmetic(label: str) -> tuple[str, str]:
    """Splits the name of a side: "openvino-bf16" is the backend openvino, computing in bfloat16."""
    backend, _, precision = label.rpartition("-")
    return (backend, precision) if precision in {*COMPUTE_PRECISIONS} - {EXACT} else (label, EXACT)


class RuntimeSide:
    """A session in this process."""

    def __init__(self, label: str, options: BenchOptions, prompts: Iterator[str]) -> None:
        self._options = options
        self._prompts = prompts
        backend, arithmetic = backend_and_arithmetic(label)
        self._session = Session(
            options.bundle_folder,
            backend=backend,
            threads=options.threads,
            keep_text_towers=options.keep_text_towers,
            precision=arithmetic,
            cache="none",  # every first prompt is computed
        )
        self._launches_several = self._session._executor.loop is not None
        """Whether several steps are one launch. They are reported at its end, one after another."""

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the backend and the bundle."""
        info = self._session.info
        return {
            "backend": info.backend,
            "precision": info.precision,
            "compute_precision": info.compute_precision,
            "weights": info.weights,
        }

    def first_stem(self) -> np.ndarray:
        """Generates the sound of the first prompt; in a fresh process this is a cold start."""
        self._clip, _ = self._encode()
        stems, _ = self._generate(1)
        return stems[0].audio

    def warm_up(self) -> None:
        """Runs every batch size once. At the first run of each, backends plan memory or record what they replay."""
        for stems in self._options.stem_counts:
            self._generate(stems)

    def round(self) -> dict[str, Any]:
        """Totals and stages of encoding the video once and generating its stems, seconds."""
        self._clip, encoding = self._encode()
        encode_s, decode_s = encoding.elapsed_s, encoding.total_s("decode")
        stages = {"decode": [decode_s], "encode": [encoding.total_s("encode")]}
        if self._session.info.picture_size:
            stages["pictures"] = [encoding.total_s("pictures")]
        by_stems = {n: (encode_s + self._timed(n, stages), decode_s) for n in self._options.stem_counts}
        return {"totals": round_totals(by_stems, self._timed(1, stages)), "stages": stages}

    def commands(self) -> dict[str, float]:
        """Seconds of two runs of `selva-generate`, each a process with its own prompt. They share an empty cache.

        Raises:
            BenchError: a run fails, or the second one encodes the video again.
        """
        with tempfile.TemporaryDirectory(prefix="selva-bench-cache-") as folder:
            runs = [self._command(Path(folder)) for _ in range(2)]
        if "encode" in runs[1][1]:
            raise BenchError("the second run of selva-generate encoded the video again; the cache does not work")
        return {"first_run_s": runs[0][0], "second_run_s": runs[1][0]}

    def _command(self, folder: Path) -> tuple[float, dict[str, float]]:
        """Run `selva-generate`. Return its seconds, and those of its stages."""
        options, info = self._options, self._session.info
        arguments = {
            "--prompt": next(self._prompts),
            "--bundle": options.bundle_folder,
            "--duration": options.duration_s,
            "--quality": options.quality,
            "--steps": options.steps,
            "--backend": info.backend,
            "--precision": info.compute_precision,
            "--threads": options.threads,
            "--cache": folder / "cache",
            "--out": folder / "stems",
        }
        words = [str(word) for option in arguments.items() for word in option]
        command = [sys.executable, "-m", "selva_runtime", str(options.video), *words, "--json", "--quiet"]
        start_s = perf_counter()
        result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        elapsed_s = perf_counter() - start_s
        if result.returncode:
            raise BenchError(f"selva-generate failed: {result.stderr.strip()}")
        timings_s: dict[str, float] = json.loads(result.stdout)["timings_s"]
        return elapsed_s, timings_s

    def _timed(self, stems: int, stages: dict[str, list[float]]) -> float:
        """Generates `stems` new prompts and returns the seconds. Adds to `stages`, for several stems only the steps."""
        _, clock = self._generate(stems)
        steps_s = clock.steps_s()
        if self._launches_several:
            steps_s = [fmean(steps_s)]
        stages.setdefault("step" if stems == 1 else f"step_of_{stems}", []).extend(steps_s)
        if stems == 1:
            for stage in ("text", "select", "conditions", "vocode"):
                stages.setdefault(stage, []).append(clock.total_s(stage))
        return clock.elapsed_s

    def _encode(self) -> tuple[Clip, StageClock]:
        clock = StageClock()
        wanted_s = self._options.duration_s
        clip = self._session.encode(self._options.video, duration_s=wanted_s, progress=clock)
        clock.stop()
        if clip.duration_s < wanted_s:
            raise BenchError(f"the video lasts {clip.duration_s:.2f} s, not {wanted_s} s; give another")
        return clip, clock

    def _generate(self, stems: int) -> tuple[list[Stem], StageClock]:
        prompts = list(islice(self._prompts, stems))
        clock = StageClock()
        quality, steps = self._options.quality, self._options.steps
        made = self._session.generate(self._clip, prompts, quality=quality, steps=steps, progress=clock)
        clock.stop()
        return made, clock
