"""The progress of a run: bars for people, seconds per stage for programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

LABELS = {
    "verify": "checking bundle",
    "decode": "reading video",
    "encode": "encoding video",
    "text": "encoding prompts",
    "select": "selecting sources",
    "conditions": "preparing",
    "step": "generating",
    "vocode": "vocoding",
    "write": "writing",
}
_WIDTH = 30
_REDRAW_S = 0.1


class ProgressBars:
    """Draws one bar per stage and redraws it in place. For terminals only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open_stage: str | None = None
        self._drawn_s = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show `done` of `total`."""
        now_s = time.monotonic()
        if stage != self._open_stage:
            self.close()
        elif done < total and now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now_s
        self._open_stage = stage
        filled = _WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._stream.write(f"\r{LABELS.get(stage, stage):>17} {bar} {done}/{total}")
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
