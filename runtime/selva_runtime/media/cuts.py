"""Find hard cuts between shots in the frames as they stream by, and read lists of cuts that a user made.

A cut is a frame that differs from the one before much more than its neighbours do, as in PySceneDetect's adaptive
detector: in fast motion all neighbours differ as much. Three things are changed. The difference is measured on a coarse
grid of mean colours, where each cell looks for its like in the cells around it, so that noise, motion and pans count
little. Repeated frames are not neighbours, because a video of 10 frames a second is a row of jumps and repetitions. And
no picture of the quarter of a second before may be like one after, which finds flashes.

Fades and dissolves are not cuts. A lasting change of all the light from one frame to the next is one. A cut within a
pan of more than an eighth of the picture a frame is not found.
"""

from __future__ import annotations

import os
import re
from collections import deque
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from selva_bundle.errors import RequestError
from selva_bundle.lengths import exact_seconds
from selva_runtime.media.resize import Planes

CELLS = 8
"""Cells to a side of the grid."""
SAMPLED_PIXELS = 64
"""Pixels to a side that are looked at, about."""
SAME, DIFFERENT = 8, 40
"""Levels of 255. A cell that differs by less does not count, one that differs by more counts in full."""
MIN_SCORE = 0.2
"""Share of the picture that must change."""
RATIO = 3.0
"""A cut's score is this many times the mean of its neighbours' scores, without the largest."""
REACH = 6
"""Neighbours to either side, in frames. A cut is known this many frames later."""
STILL = 0.002
"""A frame with a lower score is a repetition of the one before."""
MIN_SHOT = 12
"""Frames between two cuts: a shot of less than half a second counts as a part of the one before."""

MAX_FILE_BYTES = 1 << 20
TIME = re.compile(r"(?:(?:([0-9]{1,3}):)?([0-9]{1,3}):)?([0-9]{1,6}(?:[.][0-9]{0,9})?)")
"""Hours, minutes and seconds, the first two optional."""

Grid = NDArray[np.float32]
"""Mean colours, (n, 3, cells, cells)."""


def coarse(frames: Planes) -> Grid:
    """Return the mean colours of (n, 3, size, size), of any size, on a coarse grid."""
    step = max(1, frames.shape[-1] // SAMPLED_PIXELS)
    sampled = frames[:, :, ::step, ::step]
    cells = min(CELLS, sampled.shape[-1])
    width = sampled.shape[-1] // cells
    square = sampled[:, :, : cells * width, : cells * width]
    return square.reshape(len(frames), 3, cells, width, cells, width).mean(axis=(3, 5), dtype=np.float32)


def difference(first: Grid, second: Grid) -> NDArray[np.float32]:
    """Scores (n,) from 0 to 1: the share of cells in `second` with no like around the same place in `first`."""
    padded = np.pad(first, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    around = sliding_window_view(padded, (3, 3), axis=(2, 3))
    levels = np.abs(around - second[..., None, None]).max(axis=1).min(axis=(3, 4))
    shares: NDArray[np.float32] = np.clip((levels - SAME) / (DIFFERENT - SAME), 0, 1).mean(axis=(1, 2))
    return shares


class CutDetector:
    """Finds the cuts in frames that are pushed in order, in blocks of any size."""

    def __init__(self) -> None:
        self.cuts: list[int] = []
        """Numbers of the frames that begin a new shot, ascending. Each is known `REACH` frames later."""
        self._pushed = 0
        # Both hold the candidate with `REACH` frames before and after it.
        self._grids: deque[Grid] = deque(maxlen=2 * REACH + 1)
        self._scores: deque[float] = deque(maxlen=2 * REACH + 1)

    def push(self, frames: Planes) -> None:
        """Look at the next frames, uint8 (n, 3, size, size)."""
        grids = coarse(frames)
        before = np.concatenate([[self._grids[-1]] if self._grids else grids[:1], grids[:-1]])
        for grid, score in zip(grids, difference(before, grids).tolist(), strict=True):
            self._grids.append(grid)
            self._scores.append(score)
            self._pushed += 1
            if self._is_cut():
                self.cuts.append(self._pushed - 1 - REACH)

    def _is_cut(self) -> bool:
        candidate = self._pushed - 1 - REACH
        if candidate < MIN_SHOT or (self.cuts and candidate < self.cuts[-1] + MIN_SHOT):
            return False
        score = self._scores[REACH]
        moving = sorted(near for place, near in enumerate(self._scores) if place != REACH and near > STILL)
        usual = moving[:-1]  # the largest may be the end of a flash at the cut, or the rest of a blended cut
        if score < max(MIN_SCORE, RATIO * sum(usual) / max(1, len(usual))):
            return False
        grids = np.stack(self._grids)
        old, new = np.repeat(grids[:REACH], REACH + 1, axis=0), np.tile(grids[REACH:], (REACH, 1, 1, 1))
        return bool((difference(old, new) > MIN_SCORE).all())


def read_cuts(path: str | os.PathLike[str], fps: float) -> list[int]:
    """Read cuts from a text file: one time a line, ascending, as seconds (`12.48`) or as `[HH:]MM:SS[.mmm]`.

    Times count from the first frame of the video. Frame numbers are not taken, because the model's frames are not the
    video's. Empty lines and lines that begin with # are skipped. Returns the nearest frame numbers at `fps`, ascending,
    without 0, where no cut is.

    Raises:
        RequestError: there is no such file, it cannot be read, it is too large, or a line is no time or out of order.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"{path}: is not a file; name a text file with one time a line, or use automatic cuts")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_FILE_BYTES:
        raise RequestError(f"{path}: is larger than {MAX_FILE_BYTES >> 20} MiB; give a text file with one time a line")
    last, cuts = Fraction(-1), set()
    for number, line in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        time = TIME.fullmatch(text)
        if not time:
            raise RequestError(
                f"{path}, line {number}: {text[:40]!r} is not a time; write seconds such as 12.48, or HH:MM:SS.mmm"
            )
        hours, minutes, seconds = (Fraction(part or 0) for part in time.groups())
        moment = (hours * 60 + minutes) * 60 + seconds
        if moment <= last:
            raise RequestError(f"{path}, line {number}: {text} is not after the time before it; sort the times")
        last = moment
        cuts.add(round(moment * exact_seconds(fps)))
    return sorted(cuts - {0})
