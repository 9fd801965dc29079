"""Splits the time of a runtime call into stages, using only its progress calls.

Every backend reports progress, even one that replays whole runs of steps on a GPU. The time since the last report
belongs to the stage that reports.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

STAGES = ("decode", "encode", "text", "select", "conditions", "step", "vocode")
"""In the order they run; every kind of side uses these names."""


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
