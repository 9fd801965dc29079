"""Read the frames of one clip from a video file, as the model was trained to see them.

Frames are chosen by presentation time, counted from the first presented frame. Each due time (start + k / fps) takes
the first decoded frame that is not earlier. Times are exact fractions, because a sum of floats would choose the
neighbour of a frame that lies exactly on a due time. A file may be damaged, truncated or malicious: every frame that
can be decoded is used, and the memory is limited to the clip and a few frames.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from selva_bundle.errors import MediaError, RequestError
from selva_runtime.media.container import AV_ERRORS, Decoder, find_video_stream, open_media
from selva_runtime.media.pictures import Pictures
from selva_runtime.media.resize import Planes

MAX_CLIP_BYTES = 4 << 30
SEEK_MARGIN_S = 5
"""Seek this much before the start, because in some formats a seek ends after the key frame that was asked for."""
SLACK_S = Fraction(2, 1000)
"""Matroska and others round times to milliseconds, so an end this close to a due time or to the request is on it."""
TRUNCATED_S = Fraction(1, 2)
"""A video that ends this much before its header's length gets a warning."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoClip:
    """The part of a video that one generation uses."""

    path: Path
    frames: Planes
    """uint8 (T, 3, size, size), T = floor(fps * duration)."""
    fps: float
    start_s: float
    """Start of the clip, counted from the first presented frame."""
    duration_s: float
    """Real length: the requested one, or less if the video ends early."""
    source_duration_s: float | None
    """Length of the whole video, if its header says so."""
    video_start_s: float
    """Time of the first frame on the file's own timeline."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
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


class SeekFailed(Exception):  # noqa: N818 -- a signal within this module
    """The file cannot be read from the middle. It must be decoded from the start."""


def exact(value: float) -> Fraction:
    """Return the fraction that was meant, not the nearest binary one: 1/25 for 0.04, and 3/10 for 0.1 + 0.2."""
    return Fraction(value).limit_denominator(1_000_000)


def checked_request(*, size: int, fps: float, start_s: float, duration_s: float, min_duration_s: float) -> Request:
    """Make a request with exact times.

    Raises:
        RequestError: an argument is out of range, or the frames would not fit in memory.
    """
    if not (math.isfinite(start_s) and start_s >= 0):
        raise RequestError(f"start {start_s} s: must be 0 or more seconds into the video")
    if not (math.isfinite(duration_s) and exact(duration_s) >= exact(min_duration_s)):
        raise RequestError(f"duration {duration_s} s: must be at least {min_duration_s} s (one segment)")
    if not (math.isfinite(fps) and fps > 0 and size > 0):
        raise RequestError(f"{fps} frames a second of {size} pixels: both must be above 0")
    request = Request(
        size=size,
        fps=exact(fps),
        start=exact(start_s),
        duration=exact(duration_s),
        minimum=exact(min_duration_s),
    )
    if request.frames * 3 * size * size > MAX_CLIP_BYTES:
        raise RequestError(f"duration {duration_s} s: the frames would not fit in memory; use a shorter duration")
    return request


class FrameCollector:
    """Collects the frames of one clip from the decoded frames."""

    def __init__(self, request: Request, pictures: Pictures, on_progress: Progress | None) -> None:
        self.request, self.pictures, self.on_progress = request, pictures, on_progress
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
        self.frames[self.taken : stop] = self.pictures(frame)
        self.taken = stop
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


def read_clip(
    path: str | os.PathLike[str],
    *,
    size: int,
    fps: float = 25,
    start_s: float = 0.0,
    duration_s: float = 8.0,
    min_duration_s: float = 0.64,
    on_progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> VideoClip:
    """Read `duration_s` seconds of a video from `start_s` on, at `fps` frames a second of `size` x `size` pixels.

    If the video ends early, the clip is shorter and its `duration_s` says so. The last frame is repeated until the end
    of the stream. `on_progress(done, total)` counts frames and is called from this thread.

    Raises:
        MediaNotFoundError: there is no such file.
        MediaError: the file has no video that can be decoded, or it is too short (under `min_duration_s`) or too large.
        RequestError: start, duration, fps or size is out of range, or the start is past the end of the video.
        Cancelled: `cancelled` was set.
    """
    request = checked_request(size=size, fps=fps, start_s=start_s, duration_s=duration_s, min_duration_s=min_duration_s)
    path = Path(path)
    try:
        return read(path, request, on_progress, cancelled, seek=request.start > 2 * SEEK_MARGIN_S)
    except SeekFailed:
        return read(path, request, on_progress, cancelled, seek=False)


def read(
    path: Path,
    request: Request,
    on_progress: Progress | None,
    cancelled: threading.Event | None,
    *,
    seek: bool,
) -> VideoClip:
    """Read a clip, from a key frame before its start (`seek`) or from the start of the file.

    Raises:
        SeekFailed: `seek` is set and the file must be decoded from its start.
        MediaNotFoundError: there is no such file.
        MediaError: the file has no video that can be decoded, or it is too short or too large.
        RequestError: the start is past the end of the video.
        Cancelled: `cancelled` was set.
    """
    collector = FrameCollector(request, Pictures(request.size, path), on_progress)
    with open_media(path) as container:
        stream = find_video_stream(container, path)
        expected = header_length(container, stream)
        collector.set_expected_length(expected)
        decoder = Decoder(container, stream, path, cancelled)
        frames = decoder.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{path}: no frame can be decoded; the file is damaged, export it again")
        origin = first[0]
        frames = seek_near(decoder, origin + request.start) if seek else chain([first], frames)
        for begin, end, frame in frames:
            if end - origin <= request.start:
                decoder.damaged_packets = 0  # damage before the clip does not matter
            collector.add(frame, begin - origin, end - origin)
            if collector.complete:
                break
        shown_end = collector.end
        collector.end = max(collector.end, decoder.packets_end - origin)
        length = collector.finish()
    check_length(path, request, collector.end, length)
    return VideoClip(
        path=path,
        frames=collector.frames,
        fps=float(request.fps),
        start_s=float(request.start),
        duration_s=float(length),
        source_duration_s=float(expected) or None,
        video_start_s=0.0 if decoder.by_order else float(origin),
        warnings=damage_warnings(path.name, collector, decoder, shown_end, expected),
    )


def seek_near(decoder: Decoder, target: Fraction) -> chain[tuple[Fraction, Fraction, VideoFrame]]:
    """Seek, and return the frames from a key frame before `target` (seconds) on.

    Raises:
        SeekFailed: the format cannot seek, or the first frame is after `target` or has no time.
    """
    try:
        decoder.container.seek(int((target - SEEK_MARGIN_S) / decoder.time_base), stream=decoder.stream)
    except AV_ERRORS as error:
        raise SeekFailed from error
    frames = decoder.frames()
    first = next(frames, None)
    if first is None or first[0] > target or first[2].pts is None:
        raise SeekFailed
    return chain([first], frames)


def header_length(container: InputContainer, stream: VideoStream) -> Fraction:
    """Return the seconds of video according to the header, 0 if it says nothing."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    end = container.duration or 0
    # Matroska's duration counts from 0, even if the first frame comes later.
    begin = container.start_time or 0 if "matroska" in container.format.name else 0
    return Fraction(end - begin, av.time_base)


def check_length(path: Path, request: Request, end: Fraction, length: Fraction) -> None:
    """Check that the clip is long enough. `end` of the video and `length` of the clip are in seconds.

    Raises:
        RequestError: the start is past the end of the video.
        MediaError: the clip is too short.
    """
    start_s, end_s, length_s, minimum_s = (
        f"{float(value):.2f} s" for value in (request.start, end, length, request.minimum)
    )
    if length <= 0:
        raise RequestError(f"start {start_s}: {path} ends at {end_s}; start earlier")
    if length < request.minimum:
        fix = "start earlier" if end >= request.minimum else "use a longer video"
        raise MediaError(f"{path}: {length_s} of video from {start_s} on, but {minimum_s} are needed; {fix}")


def damage_warnings(
    name: str, collector: FrameCollector, decoder: Decoder, shown_end: Fraction, expected: Fraction
) -> tuple[str, ...]:
    """Return warnings about a damaged file."""
    warnings = []
    if decoder.damaged_packets:
        warnings.append(f"{name}: {pluralise(decoder.damaged_packets, 'damaged packet')} skipped")
    if collector.concealed:
        warnings.append(f"{name}: {pluralise(collector.concealed, 'damaged frame')} concealed by the decoder")
    if not collector.complete and expected - collector.end > TRUNCATED_S:
        warnings.append(f"{name}: ends after {float(collector.end):.2f} s, but its header says {float(expected):.2f} s")
    if collector.end - shown_end > TRUNCATED_S:
        warnings.append(f"{name}: no frame can be decoded after {float(shown_end):.2f} s; the last one is repeated")
    return tuple(warnings)


def pluralise(number: int, noun: str) -> str:
    """Return a number with its noun, such as "2 packets"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
