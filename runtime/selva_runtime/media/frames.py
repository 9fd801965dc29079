"""Choose the frames of one clip from the decoded frames, as the model was trained to see them.

Frames are chosen by presentation time, counted from the first presented frame. Each due time (start + k / fps) takes
the first decoded frame that is not earlier, or with the rule "nearest" the frame whose time is nearest. Times are exact
fractions, because a sum of floats would choose the neighbour of a frame that lies exactly on a due time.

Several views can take their frames from one video while it is decoded once. It may be hours long, so the frames can
also be handed on without being kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame

from selva_bundle.errors import MediaError, RequestError
from selva_bundle.lengths import exact_seconds
from selva_runtime.media.pictures import Picture, Pictures
from selva_runtime.media.resize import Planes
from selva_runtime.media.views import View

MAX_CLIP_BYTES = 4 << 30
"""Limit of the frames of one view that are kept."""
MAX_CLIP_S = 10 * 3600
"""Limit of a clip's length. A damaged or malicious file may show its second frame 1000 hours after the first."""
MAX_ROWS = 64
"""Frames in one call of `on_rows`, however often a frame is repeated."""
FIRST_CAPACITY = 256
FRAME_RULES = ("first", "nearest")
SLACK_S = Fraction(2, 1000)
"""Matroska and others round times to milliseconds, so an end this close to a due time or to the request is on it."""

OnFrames = Callable[[int, int], None]
"""Called with the number of frames of the first view that are done and the total."""
OnRows = Callable[[int, Planes], None]
"""Called with the number of a view and its next frames, (n, 3, size, size) uint8, while the file is still being read.
Each frame comes once and in order, at most 64 in one call. The array is not written to again."""


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """A checked request with exact times in seconds."""

    views: tuple[View, ...]
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
    def fastest(self) -> Fraction:
        """The highest rate of the views."""
        return max(view.rate for view in self.views)


def checked_request(
    *,
    views: Sequence[View],
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
    if not views:
        raise RequestError("views is empty; give at least one View")
    request = FrameRequest(
        views=tuple(views),
        start=exact_seconds(start_s),
        duration=exact_seconds(duration_s),
        to_end=to_end,
        minimum=exact_seconds(min_duration_s),
        keep=keep,
        nearest=check_frame_rule(frame_rule) == "nearest",
    )
    kept = max(math.floor(request.duration * view.rate) * view.frame_bytes for view in request.views)
    if keep and not to_end and kept > MAX_CLIP_BYTES:
        raise RequestError(f"duration {duration_s} s: the frames would not fit in memory; use a shorter duration")
    if duration_s > MAX_CLIP_S:
        raise RequestError(f"duration {duration_s} s: must be at most {MAX_CLIP_S} s; use a shorter duration")
    return request


def check_frame_rule(rule: str) -> str:
    """Check and return the name of a rule.

    Raises:
        RequestError: there is no such rule.
    """
    if rule not in FRAME_RULES:
        raise RequestError(f"frame rule {rule!r}: must be first or nearest")
    return rule


class ViewFrames:
    """The frames of one view of a clip. Times are in seconds from the clip's start."""

    def __init__(self, view: View, request: FrameRequest, path: Path) -> None:
        self.view, self.keep, self.path = view, request.keep, path
        capacity = (FIRST_CAPACITY if request.to_end else self.due(request.duration)) if request.keep else 0
        self.frames = np.empty((capacity, 3, view.size, view.size), np.uint8)
        self.taken = 0
        self._held: Planes | None = None

    def due(self, length: Fraction) -> int:
        """Return the number of frames of a clip of this length."""
        return math.floor(length * self.view.rate)

    def fill_until(self, picture: Picture, until: Fraction, length: Fraction) -> Iterator[Planes]:
        """Use `picture` for all due times up to and including `until` that have no frame yet. Yield the new frames.

        If the video ended now, the clip would have this `length`, and the last of the frames might be past its end. So
        that one is held until it is known.

        Raises:
            MediaError: the picture cannot be converted, or the frames do not fit in memory.
        """
        due, certain = self.due(until) + 1, self.due(length)
        if self._held is not None and certain > self.taken:
            yield self._take(self._held, self.taken + 1)
            self._held = None
        if self._held is None and due > self.taken:
            planes = picture.seen(self.view)
            for first in range(self.taken, min(due, certain), MAX_ROWS):
                yield self._take(planes, min(due, certain, first + MAX_ROWS))
            if due > self.taken:
                self._held = planes

    def _take(self, planes: Planes, stop: int) -> Planes:
        if self.keep:
            self._make_room(stop)
            rows = self.frames[self.taken : stop]
            rows[:] = planes
        else:
            rows = np.repeat(planes[None], stop - self.taken, axis=0)
        self.taken = stop
        return rows

    def _make_room(self, count: int) -> None:
        if count * self.view.frame_bytes > MAX_CLIP_BYTES:
            raise MediaError(f"{self.path}: its frames do not fit in memory; choose a shorter duration")
        if count > len(self.frames):
            larger = np.empty((2 * len(self.frames), *self.frames.shape[1:]), np.uint8)
            larger[: self.taken] = self.frames[: self.taken]
            self.frames = larger


class FrameCollector:
    """Collects the frames of one clip from the decoded frames."""

    def __init__(
        self, request: FrameRequest, pictures: Pictures, on_progress: OnFrames | None, on_rows: OnRows | None
    ) -> None:
        self.request, self.pictures, self.on_progress = request, pictures, on_progress
        self.on_rows = on_rows
        self.views = [ViewFrames(view, request, pictures.path) for view in request.views]
        self.total = 0 if request.to_end else self.views[0].due(request.duration)
        self.concealed = 0
        self.last: Picture | None = None
        self.last_begin = self.end = Fraction(0)

    @property
    def complete(self) -> bool:
        """Whether all frames are there and the end of the clip was reached."""
        request = self.request
        reached = self.end >= request.start + request.duration - SLACK_S
        return reached and not request.to_end and all(each.taken == each.due(request.duration) for each in self.views)

    @property
    def length(self) -> Fraction:
        """Length in seconds of the clip if the video ended at `end`. It is negative before the start.

        Only the fastest view rounds it, so a slower one beside it changes nothing.
        """
        request = self.request
        length = min(request.duration, self.end - request.start)
        for mark in (math.ceil(length * request.fastest) / request.fastest, request.duration):
            if length < mark <= min(request.duration, length + SLACK_S):
                length = mark
        return length

    def set_expected_length(self, length: Fraction) -> None:
        """Use the length in the header (seconds) for the progress. Nothing else relies on it."""
        if length > self.request.start:
            expected = self.views[0].due(length - self.request.start)
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
        self.last, self.last_begin = Picture(self.pictures, frame, begin), begin
        self.fill_until(self.last, begin)

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

    def fill_until(self, picture: Picture, until: Fraction) -> None:
        """Use `picture` in all views for what is due up to and including `until` and has no frame yet."""
        for number, each in enumerate(self.views):
            for rows in each.fill_until(picture, until - self.request.start, self.length):
                if self.on_rows:
                    self.on_rows(number, rows)
                if number == 0:
                    self.report()

    def report(self) -> None:
        """Call `on_progress`."""
        taken = self.views[0].taken
        if self.request.to_end:
            self.total = max(self.total, taken)
        if self.on_progress:
            self.on_progress(min(taken, self.total), self.total)

    def finish(self) -> Fraction:
        """Repeat the last frame until the end of the video. Return the real length of the clip in seconds."""
        if self.last is not None and self.length > 0:
            self.fill_until(self.last, self.request.start + self.length)
        for each in self.views:
            each.frames = each.frames[: each.taken]
        self.total = self.views[0].taken
        self.report()
        return self.length
