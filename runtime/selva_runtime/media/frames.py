"""Choose the frames of one clip from the decoded frames, as the model was trained to see them.

Frames are chosen by presentation time, counted from the first presented frame. Each due time (start + k / fps) takes
the first decoded frame that is not earlier, or with the rule "nearest" the frame whose time is nearest. Times are exact
fractions, because a sum of floats would choose the neighbour of a frame that lies exactly on a due time.

A video may be hours long, so the frames can also be handed on without being kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame

from selva_bundle.errors import MediaError, RequestError
from selva_bundle.lengths import exact_seconds
from selva_runtime.media.pictures import Pictures
from selva_runtime.media.resize import Planes

MAX_CLIP_BYTES = 4 << 30
"""Limit of the frames that are kept."""
MAX_CLIP_S = 10 * 3600
"""Limit of a clip's length. A damaged or malicious file may show its second frame 1000 hours after the first."""
MAX_ROWS = 64
"""Frames in one call of `on_rows`, however often a frame is repeated."""
FIRST_CAPACITY = 256
FRAME_RULES = ("first", "nearest")
SLACK_S = Fraction(2, 1000)
"""Matroska and others round times to milliseconds, so an end this close to a due time or to the request is on it."""

OnFrames = Callable[[int, int], None]
"""Called with the number of frames that are done and the total."""
OnRows = Callable[[Planes], None]
"""Called with the next frames of the clip, (n, 3, size, size) uint8, while the file is still being read. Each frame
comes once and in order, at most 64 in one call. The array is not written to again."""


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """A checked request with exact times in seconds. `size` is in pixels."""

    size: int
    fps: Fraction
    start: Fraction
    duration: Fraction
    """The longest that a clip can be if `to_end`."""
    to_end: bool
    """Read to the end of the video."""
    minimum: Fraction
    keep: bool
    """Keep all frames."""
    nearest: bool
    """Take the nearest frame instead of the first that is not earlier."""

    @property
    def frames(self) -> int:
        """Number of frames, at most."""
        return math.floor(self.duration * self.fps)

    @property
    def frame_bytes(self) -> int:
        """Size of one frame."""
        return 3 * self.size * self.size


def checked_request(
    *,
    size: int,
    fps: float,
    start_s: float,
    duration_s: float | None,
    min_duration_s: float,
    keep: bool,
    frame_rule: str,
) -> FrameRequest:
    """Make a request with exact times. `duration_s` None means to the end of the video.

    Raises:
        RequestError: an argument is out of range, or the frames would not fit in memory.
    """
    to_end = duration_s is None
    duration_s = MAX_CLIP_S if duration_s is None else duration_s
    if not (math.isfinite(start_s) and start_s >= 0):
        raise RequestError(f"start {start_s} s: must be 0 or more seconds into the video")
    if not (math.isfinite(duration_s) and exact_seconds(duration_s) >= exact_seconds(min_duration_s)):
        raise RequestError(f"duration {duration_s} s: must be at least {min_duration_s} s (one segment)")
    if not (math.isfinite(fps) and fps > 0 and size > 0):
        raise RequestError(f"{fps} frames a second of {size} pixels: both must be above 0")
    if frame_rule not in FRAME_RULES:
        raise RequestError(f"frame rule {frame_rule!r}: must be {' or '.join(FRAME_RULES)}")
    request = FrameRequest(
        size=size,
        fps=exact_seconds(fps),
        start=exact_seconds(start_s),
        duration=exact_seconds(duration_s),
        to_end=to_end,
        minimum=exact_seconds(min_duration_s),
        keep=keep,
        nearest=frame_rule == "nearest",
    )
    if keep and not to_end and request.frames * request.frame_bytes > MAX_CLIP_BYTES:
        raise RequestError(f"duration {duration_s} s: the frames would not fit in memory; use a shorter duration")
    if duration_s > MAX_CLIP_S:
        raise RequestError(f"duration {duration_s} s: must be at most {MAX_CLIP_S} s; use a shorter duration")
    return request


class FrameCollector:
    """Collects the frames of one clip from the decoded frames."""

    def __init__(
        self, request: FrameRequest, pictures: Pictures, on_progress: OnFrames | None, on_rows: OnRows | None
    ) -> None:
        self.request, self.pictures, self.on_progress, self.on_rows = request, pictures, on_progress, on_rows
        capacity = (FIRST_CAPACITY if request.to_end else request.frames) if request.keep else 0
        self.frames = np.empty((capacity, 3, request.size, request.size), np.uint8)
        self.total = 0 if request.to_end else request.frames
        self.taken = self.concealed = 0
        self.last: VideoFrame | None = None
        self.last_begin = self.end = Fraction(0)
        self._held: VideoFrame | None = None
        self._converted: tuple[VideoFrame, Planes] | None = None

    @property
    def complete(self) -> bool:
        """Whether all frames are there and the end of the clip was reached."""
        request = self.request
        reached = self.end >= request.start + request.duration - SLACK_S
        return not request.to_end and self.taken == request.frames and reached

    @property
    def length(self) -> Fraction:
        """Length in seconds of the clip if the video ended at `end`. It is negative before the start."""
        request = self.request
        length = min(request.duration, self.end - request.start)
        for mark in (math.ceil(length * request.fps) / request.fps, request.duration):
            if length < mark <= min(request.duration, length + SLACK_S):
                length = mark
        return length

    def set_expected_length(self, length: Fraction) -> None:
        """Use the length in the header (seconds) for the progress. Nothing else relies on it."""
        if length > self.request.start:
            expected = math.floor((length - self.request.start) * self.request.fps)
            self.total = expected if self.request.to_end else min(self.total, expected)

    def add(self, frame: VideoFrame, begin: Fraction, end: Fraction) -> None:
        """Add a decoded frame. `begin` and `end` are seconds from the first presented frame.

        Raises:
            MediaError: the clip becomes too long, or its frames do not fit in memory.
        """
        self.extend(end)
        self.concealed += frame.is_corrupt and end > self.request.start
        if self.request.nearest and self.last is not None:
            self.fill_until(self.last, (self.last_begin + begin) / 2)
        self.last, self.last_begin = frame, begin
        self.fill_until(frame, begin)

    def extend(self, end: Fraction) -> None:
        """Note that the video lasts at least until `end`.

        Raises:
            MediaError: the clip becomes too long.
        """
        self.end = max(self.end, end)
        if self.request.to_end and self.end - self.request.start > MAX_CLIP_S:
            raise MediaError(
                f"{self.pictures.path}: lasts {float(self.end / 3600):.1f} h by its own times, more than "
                f"{MAX_CLIP_S // 3600} h; choose a part with a start and a duration"
            )

    def fill_until(self, frame: VideoFrame, until: Fraction) -> None:
        """Use `frame` for all due times up to and including `until` that have no frame yet.

        If the video ended now, the last of them might be past the clip's end. Its frame is held until that is known.
        """
        request = self.request
        due = math.floor((until - request.start) * request.fps) + 1
        certain = math.floor(self.length * request.fps)
        if self._held is not None and certain > self.taken:
            self._take(self._held, self.taken + 1)
            self._held = None
        if self._held is None and due > self.taken:
            for first in range(self.taken, min(due, certain), MAX_ROWS):
                self._take(frame, min(due, certain, first + MAX_ROWS))
            if due > self.taken:
                self._held = frame

    def _take(self, frame: VideoFrame, stop: int) -> None:
        if self._converted is None or self._converted[0] is not frame:
            self._converted = frame, self.pictures(frame)
        planes = self._converted[1]
        if self.request.keep:
            self._make_room(stop)
            rows = self.frames[self.taken : stop]
            rows[:] = planes
        else:
            rows = np.repeat(planes[None], stop - self.taken, axis=0)
        self.taken = stop
        if self.on_rows:
            self.on_rows(rows)
        self.report()

    def _make_room(self, count: int) -> None:
        if count * self.request.frame_bytes > MAX_CLIP_BYTES:
            raise MediaError(f"{self.pictures.path}: its frames do not fit in memory; choose a shorter duration")
        if count > len(self.frames):
            larger = np.empty((2 * len(self.frames), *self.frames.shape[1:]), np.uint8)
            larger[: self.taken] = self.frames[: self.taken]
            self.frames = larger

    def report(self) -> None:
        """Call `on_progress`."""
        if self.request.to_end:
            self.total = max(self.total, self.taken)
        if self.on_progress:
            self.on_progress(min(self.taken, self.total), self.total)

    def finish(self) -> Fraction:
        """Repeat the last frame until the end of the video. Return the real length of the clip in seconds."""
        if self.last is not None and self.length > 0:
            self.fill_until(self.last, self.request.start + self.length)
        self.frames = self.frames[: self.taken]
        self.total = self.taken
        self.report()
        return self.length
