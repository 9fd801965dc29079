"""Times the runtime: one clip per round, encoded once, and stems of it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from selva_bench.errors import BenchError
from selva_bench.job import SideJob, endless_prompts
from selva_bench.stages import StageClock
from selva_bench.totals import round_totals
from selva_runtime.results import Clip, Stem
from selva_runtime.session import Session


class RuntimeSide:
    """A session in this process."""

    def __init__(self, job: SideJob) -> None:
        self._job = job
        self._prompts = endless_prompts()
        self._session = Session(
            job.bundle,
            backend=job.backend,
            threads=job.threads,
            keep_text_towers=job.keep_text_towers,
            precision=job.precision,
        )

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
        for stems in self._job.stems:
            self._generate(stems)

    def round(self) -> dict[str, Any]:
        """Totals and stages of one clip and its stems, seconds."""
        self._clip, encoding = self._encode()
        encode_s, decode_s = encoding.elapsed_s, encoding.total_s("decode")
        stages = {"decode": [decode_s], "encode": [encoding.total_s("encode")]}
        by_stems: dict[int, tuple[float, float]] = {}
        for stems in self._job.stems:
            seconds = self._timed(stems, stages)
            by_stems[stems] = (encode_s + seconds, decode_s)
        return {"totals": round_totals(by_stems, self._timed(1, stages)), "stages": stages}

    def _timed(self, stems: int, stages: dict[str, list[float]]) -> float:
        """Generates `stems` new prompts and returns the seconds. Adds to `stages`, except the step of a single stem."""
        _, clock = self._generate(stems)
        stages.setdefault("step" if stems == 1 else f"step_of_{stems}", []).extend(clock.steps_s())
        if stems == 1:
            for stage in ("text", "select", "conditions", "vocode"):
                stages.setdefault(stage, []).append(clock.total_s(stage))
        return clock.elapsed_s

    def _encode(self) -> tuple[Clip, StageClock]:
        clock = StageClock()
        clip = self._session.encode(self._job.video, duration_s=self._job.duration_s, progress=clock)
        clock.stop()
        if clip.duration_s < self._job.duration_s:
            raise BenchError(f"the video lasts {clip.duration_s:.2f} s, not {self._job.duration_s} s; give another")
        return clip, clock

    def _generate(self, stems: int) -> tuple[list[Stem], StageClock]:
        prompts = list(islice(self._prompts, stems))
        clock = StageClock()
        made = self._session.generate(
            self._clip, prompts, steps=self._job.steps, guidance=self._job.guidance, progress=clock
        )
        clock.stop()
        return made, clock
