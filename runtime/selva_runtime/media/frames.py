"""Choose the frames of one clip from the decoded frames, as the model was trained to see them.

Frames are chosen by presentation time, counted from the first presented frame. Each due time (start + k / fps) takes
the first decoded frame that is not earlier. Times are exact fractions, because a sum of floats would choose the
neighbour of a frame that lies exactly on a due time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame

from selva_bundle.errors import RequestError
from selva_bundle.lengths import exact_seconds
from selva_runtime.media.pictures import Pictures
from selva_runtime.media.resize import Planes

MAX_CLIP_BYTES = 4 << 30
SLACK_S = Fraction(2, 1000)
"""Matroska and others round times to milliseconds, so an end this close to a due time or to the request is on it."""

OnFrames = Callable[[int, int], None]
"""Called with the number of frames that are done and the total."""
OnRows = Callable[[Planes], None]
"""Called with the next frames of the clip, (n, 3, size, size) uint8, while the file is still being read."""


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """A checked request with exact times in seconds. `size` is in pixels."""

    size: int
    fps: Fraction
    start: Fraction
    duration: Fraction
    minimum: Fraction

    @property
    def frames(self) -> int:
        """Number of frames."""
        return math.floor(self.duration * self.fps)


def checked_request(*, size: int, fps: float, start_s: float, duration_s: float, min_duration_s: float) -> FrameRequest:
    """Make a request with exact times.

    Raises:
        RequestError: an argument is out of range, or the frames would not fit in memory.
    """
    if not (math.isfinite(start_s) and start_s >= 0):
        raise RequestError(f"start {start_s} s: must be 0 or more seconds into the video")
    if not (math.isfinite(duration_s) and exact_seconds(duration_s) >= exact_seconds(min_duration_s)):
        raise RequestError(f"duration {duration_s} s: must be at least {min_duration_s} s (one segment)")
    if not (math.isfinite(fps) and fps > 0 and size > 0):
        raise RequestError(f"{fps} frames a second of {size} pixels: both must be above 0")
    request = FrameRequest(
        size=size,
        fps=exact_seconds(fps),
        start=exact_seconds(start_s),
        duration=exact_seconds(duration_s),
        minimum=exact_seconds(min_duration_s),
    )
    if request.frames * 3 * size * size > MAX_CLIP_BYTES:
        raise RequestError(f"duration {duration_s} s: the frames would not fit in memory; use a shorter duration")
    return request


class FrameCollector:
    """Collects the frames of one clip from the decoded frames."""

    def __init__(
        self, request: FrameRequest, pictures: Pictures, on_progress: OnFrames | None, on_rows: OnRows | None
    ) -> None:
        self.request, self.pictures, self.on_progress, self.on_rows = request, pictures, on_progress, on_rows
        self.frames = np.empty((request.frames, 3, request.size, request.size), np.uint8)
        self.total = request.frames
        self.taken = self.concealed = 0
        self.last: VideoFrame | None = None
        self.end = Fraction(0)

    @property
    def complete(self) -> bool:
        """Whether all frames are there and the end of the clip was reached."""
        request = self.request
        return self.taken == request.frames and self.end >= request.start + request.duration - SLACK_S

    def set_expected_length(self, length: Fraction) -> None:
        """Use the length in the header (seconds) for the progress. Nothing else relies on it."""
        if length > self.request.start:
            self.total = min(self.total, math.floor((length - self.request.start) * self.request.fps))

    def add(self, frame: VideoFrame, begin: Fraction, end: Fraction) -> None:
        """Add a decoded frame. `begin` and `end` are seconds from the first presented frame."""
        self.last, self.end = frame, max(self.end, end)
        self.concealed += frame.is_corrupt and end > self.request.start
        self.fill_until(frame, begin)

    def fill_until(self, frame: VideoFrame, until: Fraction) -> None:
        """Use `frame` for all due times up to and including `until`."""
        due = math.floor((until - self.request.start) * self.request.fps) + 1
        stop = min(due, len(self.frames))
        if stop <= self.taken:
            return
        rows = self.frames[self.taken : stop]
        rows[:] = self.pictures(frame)
        self.taken = stop
        if self.on_rows:
            self.on_rows(rows)
        self.report()

    def report(self) -> None:
        """Call `on_progress`."""
        if self.on_progress:
            self.on_progress(min(self.taken, self.total), self.total)

    def finish(self) -> Fraction:
        """Repeat the last frame until the end of the video. Return the real length of the clip in seconds."""
        request = self.request
        length = min(request.duration, self.end - request.start)
        for mark in (math.ceil(length * request.fps) / request.fps, request.duration):
            if length < mark <= min(request.duration, length + SLACK_S):
                length = mark
        if self.last is not None and length > 0:
            self.fill_until(self.last, request.start + length)
        self.frames = self.frames[: max(0, math.floor(length * request.fps))]
        self.total = len(self.frames)
        self.report()
        return length
