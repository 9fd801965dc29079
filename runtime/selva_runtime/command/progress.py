"""The progress of a run: bars for people, seconds per stage for programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

LABELS = {
    "verify": "checking bundle",
    "decode": "reading video",
    "encode": "encoding video",
    "pictures": "looking at it",
    "text": "encoding prompts",
    "select": "selecting sources",
    "conditions": "preparing",
    "step": "generating",
    "vocode": "vocoding",
    "write": "writing",
}
_WIDTH = 30
_REDRAW_S = 0.1


_WORTH_SAYING_S = 10
_LONG_STAGES = ("encode", "pictures", "step")
_LONG_S = 30
_SEEN, _SEEN_S = 3, 2.0
"""A rate is known after this many items and seconds."""


class _Rate:
    """How long the rest of a stage will take, from how long its items have taken so far."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}

    def left_s(self, stage: str, done: int, total: int) -> float | None:
        """Seconds until `total` items are done, or None if that is not known yet."""
        now_s = time.monotonic()
        begun_s, first = self._begun.setdefault(stage, (now_s, done))
        seen, elapsed_s = done - first, now_s - begun_s
        return elapsed_s / seen * (total - done) if seen >= _SEEN and elapsed_s >= _SEEN_S else None


class TimeLeft:
    """Tells the user once for each stage how long the rest will take, if that is long."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rate = _Rate()
        self._known: set[str] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` items of a stage are done."""
        left_s = self._rate.left_s(stage, done, total) if stage in _LONG_STAGES else None
        if left_s is None or stage in self._known:
            return
        self._known.add(stage)
        if left_s >= _LONG_S:
            self._say(f"{LABELS.get(stage, stage)} will take about {duration(left_s)} more")


def duration(seconds: float) -> str:
    """Write a number of seconds for a person: "50 s", "12 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class ProgressBars:
    """Draws one bar per stage and redraws it in place. For terminals only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open_stage: str | None = None
        self._drawn_s = 0.0
        self._rate = _Rate()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show `done` of `total`."""
        now_s = time.monotonic()
        left_s = self._rate.left_s(stage, done, total)
        if stage != self._open_stage:
            self.close()
        elif done < total and now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now_s
        self._open_stage = stage
        filled = _WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (_WIDTH - filled)
        left = f" {duration(left_s)} left" if done < total and left_s is not None and left_s >= _WORTH_SAYING_S else ""
        self._stream.write(f"\r{LABELS.get(stage, stage):>17} {bar} {done}/{total}{left:<14}")
        self._stream.flush()

    def close(self) -> None:
        """End the line of the last bar, so that other text can follow."""
        if self._open_stage is not None:
            self._stream.write("\n")
            self._stream.flush()
            self._open_stage = None


class StageClock:
    """Measures the seconds of each stage from the progress calls, and passes the calls on to `show`."""

    def __init__(self, show: Callable[[str, int, int], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._show = show
        self._last_s = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Add the time since the last call to `stage`."""
        now_s = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s
        if self._show is not None:
            self._show(stage, done, total)
