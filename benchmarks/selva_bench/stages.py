"""Where the time of a runtime call goes, told from its progress calls alone.

Progress is the one thing that every backend reports, also one that replays whole runs of steps on a GPU. The time
since the last report belongs to the stage that reports. Where the conditions are not reported, the first report of a
flow holds them and a step or more: what it took beyond the median of the other steps counts as theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

STAGES = ("decode", "encode", "text", "select", "conditions", "step", "vocode")
"""As they run; every kind of side fills in these names."""


class StageClock:
    """A progress callback that keeps the time of each report. Start one for each call."""

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self._now = now
        self._start_s = self._last_s = now()
        self._reports: list[tuple[str, int, int, float]] = []
        self.elapsed_s = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `selva_runtime.session.Progress`."""
        now_s = self._now()
        self._reports.append((stage, done, total, now_s - self._last_s))
        self._last_s = now_s

    def stop(self) -> None:
        """Call when the work is done."""
        self.elapsed_s = self._now() - self._start_s

    def total_s(self, stage: str) -> float:
        """Seconds of all reports of `stage`."""
        return sum(seconds for name, _, _, seconds in self._reports if name == stage)

    def flow(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of the conditions, and of each step but those that the conditions came with."""
        reported_s = self.total_s("conditions")
        with_conditions: list[tuple[int, float]] = []
        later: list[float] = []
        before = 0
        for stage, done, _, seconds in self._reports:
            if stage != "step":
                continue
            count = done - before
            if before % steps == 0 and not reported_s:
                with_conditions.append((count, seconds))
            else:
                later += [seconds / count] * count
            before = done
        if reported_s:
            return reported_s, later
        if not later:  # a whole run reported at once: nothing to tell the conditions by
            return 0.0, [seconds / count for count, seconds in with_conditions for _ in range(count)]
        step_s = median(later)
        return sum(max(0.0, seconds - count * step_s) for count, seconds in with_conditions), later
