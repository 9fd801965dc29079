"""Read the frames of one clip from a video file, in one view or several.

A file may be damaged, truncated or malicious: every frame that can be decoded is used, and the memory is limited to
the clip and a few frames, or to a few frames if the clip is not kept.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from selva_bundle.errors import MediaError, RequestError
from selva_runtime.media.container import AV_ERRORS, Decoder, find_video_stream, open_media
from selva_runtime.media.frames import FrameCollector, FrameRequest, OnFrames, OnRows, checked_request
from selva_runtime.media.pictures import Pictures
from selva_runtime.media.resize import Planes
from selva_runtime.media.views import SQUASH, View

SEEK_MARGIN_S = 5
"""Seek this much before the start, because in some formats a seek ends after the key frame that was asked for."""
TRUNCATED_S = Fraction(1, 2)
"""A video that ends this much before its header's length gets a warning."""
TRACK_LENGTH = re.compile(r"([0-9]{1,9}):([0-9]{2}):([0-9]{2}(?:[.][0-9]{1,9})?)")
"""Value of a Matroska track's DURATION tag."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoClip:
    """The part of a video that one generation uses, in one view."""

    path: Path
    frames: Planes
    """uint8 (T, 3, size, size), T = `frame_count`, or T = 0 if the frames were not kept."""
    frame_count: int
    """floor(fps * duration)."""
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


class VideoFile(os.PathLike[str]):
    """A video file that is open and has a video stream. It can be read once; `with` closes it.

    Raises:
        MediaNotFoundError: there is no such file.
        MediaError: it is not a video that can be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._given = os.fspath(path)
        self._open_files = ExitStack()
        self.reopen()

    def __fspath__(self) -> str:
        return self._given

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()

    def reopen(self) -> None:
        """Open the file again, to read it from its start."""
        self._open_files.close()
        with ExitStack() as opened:
            self.container = opened.enter_context(open_media(self.path))
            self.stream = find_video_stream(self.container, self.path)
            self._open_files = opened.pop_all()


class SeekFailed(Exception):  # noqa: N818 -- a signal within this module
    """The file cannot be read from the middle. It must be decoded from the start."""


def read_clip(
    path: str | os.PathLike[str],
    *,
    size: int,
    fps: float = 25,
    fit: str = SQUASH,
    start_s: float = 0.0,
    duration_s: float | None = 8.0,
    min_duration_s: float = 0.64,
    frame_rule: str = "first",
    keep_frames: bool = True,
    on_progress: OnFrames | None = None,
    on_rows: Callable[[Planes], None] | None = None,
    cancelled: threading.Event | None = None,
) -> VideoClip:
    """Read one view of a video, as `read_views` does. `on_rows(frames)` gets its next frames."""
    (clip,) = read_views(
        path,
        [View(size=size, fps=fps, fit=fit)],
        start_s=start_s,
        duration_s=duration_s,
        min_duration_s=min_duration_s,
        frame_rule=frame_rule,
        keep_frames=keep_frames,
        on_progress=on_progress,
        on_rows=None if on_rows is None else lambda _, frames: on_rows(frames),
        cancelled=cancelled,
    )
    return clip


def read_views(
    path: str | os.PathLike[str],
    views: Sequence[View],
    *,
    start_s: float = 0.0,
    duration_s: float | None = 8.0,
    min_duration_s: float = 0.64,
    frame_rule: str = "first",
    keep_frames: bool = True,
    on_progress: OnFrames | None = None,
    on_rows: OnRows | None = None,
    cancelled: threading.Event | None = None,
) -> list[VideoClip]:
    """Read `duration_s` seconds of a video from `start_s` on, decoded once, as a clip for each of the views.

    If the video ends early, the clips are shorter and their `duration_s`, the same for all, says so. The last frame is
    repeated until the end of the stream. `duration_s` None reads to the end of the video, of up to 10 hours. `path` may
    be a `VideoFile`, which is closed after it was read.

    `on_progress(done, total)` counts the frames of the first view, and `on_rows(view, frames)` gets the next frames of
    a view, by its place in `views`, as soon as they are there, each once, in order and at most 64 in one call. Both are
    called from this thread. Without `keep_frames` the frames are only given to `on_rows`, and the memory does not grow
    with the length.

    `frame_rule` "first" takes the first frame that is not before a due time, as the model was trained. "nearest" takes
    the nearest frame, the earlier of two that are equally near.

    Raises:
        MediaNotFoundError: there is no such file.
        MediaError: the file has no video that can be decoded, or it is too short (under `min_duration_s`) or too large.
        RequestError: start, duration or rule is out of range, there is no view, or the start is past the end of the
            video.
        Cancelled: `cancelled` was set.
    """
    request = checked_request(
        views=views,
        start_s=start_s,
        duration_s=duration_s,
        min_duration_s=min_duration_s,
        keep=keep_frames,
        frame_rule=frame_rule,
    )
    with path if isinstance(path, VideoFile) else VideoFile(path) as opened:
        try:
            return read(opened, request, on_progress, on_rows, cancelled, seek=request.start > 2 * SEEK_MARGIN_S)
        except SeekFailed:
            opened.reopen()
            return read(opened, request, on_progress, on_rows, cancelled, seek=False)


def read(
    video: VideoFile,
    request: FrameRequest,
    on_progress: OnFrames | None,
    on_rows: OnRows | None,
    cancelled: threading.Event | None,
    *,
    seek: bool,
) -> list[VideoClip]:
    """Read the clips, from a key frame before their start (`seek`) or from the start of the file.

    Raises:
        SeekFailed: `seek` is set and the file must be decoded from its start.
        MediaError: the file has no video that can be decoded, or it is too short or too large.
        RequestError: the start is past the end of the video.
        Cancelled: `cancelled` was set.
    """
    path = video.path
    collector = FrameCollector(request, Pictures(path), on_progress, on_rows)
    expected = header_length(video.container, video.stream)
    collector.set_expected_length(expected)
    decoder = Decoder(video.container, video.stream, path, cancelled)
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
    collector.extend(decoder.packets_end - origin)
    length = collector.finish()
    check_length(path, request, collector.end, length)
    warnings = damage_warnings(path.name, collector, decoder, shown_end, expected)
    return [
        VideoClip(
            path=path,
            frames=each.frames,
            frame_count=each.taken,
            fps=float(each.view.rate),
            start_s=float(request.start),
            duration_s=float(length),
            source_duration_s=float(expected) or None,
            video_start_s=0.0 if decoder.by_order else float(origin),
            warnings=warnings,
        )
        for each in collector.views
    ]


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
    end, begin = Fraction(container.duration or 0, av.time_base), Fraction(0)
    if "matroska" in container.format.name:
        # Its times count from 0, even if the first frame comes later. The file's length may be that of the sound.
        begin = Fraction(container.start_time or 0, av.time_base)
        own = TRACK_LENGTH.fullmatch(stream.metadata.get("DURATION", ""))
        if own:
            hours, minutes, seconds = map(Fraction, own.groups())
            track_end = (hours * 60 + minutes) * 60 + seconds
            end = track_end if begin < track_end < end else end
    return end - begin


def check_length(path: Path, request: FrameRequest, end: Fraction, length: Fraction) -> None:
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
