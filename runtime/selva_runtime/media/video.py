"""Read the frames of one clip from a video file, in one view or several.

A file may be damaged, truncated or malicious: every frame that can be decoded is used, and the memory is limited to
the clip and a few frames, or to a few frames if the clip is not kept.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from selva_bundle.errors import MediaError, RequestError
from selva_runtime.media.container import Decoder, find_video_stream, open_media
from selva_runtime.media.frames import FrameCollector, FrameRequest, OnFrames, OnRows, checked_request
from selva_runtime.media.pictures import Mask, Pictures
from selva_runtime.media.resize import Planes
from selva_runtime.media.seeking import SEEK_MARGIN_S, SeekFailed, header_length, seek_near
from selva_runtime.media.views import SQUASH, View

TRUNCATED_S = Fraction(1, 2)
"""A video that ends this much before its header's length gets a warning."""


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
    mask: Mask | None = None,
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
        mask=mask,
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
    mask: Mask | None = None,
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

    `mask` fills parts of the whole, upright frames before they are resized, in the views that are `masked`.

    Raises:
        MediaNotFoundError: there is no such file.
        MediaError: the file has no video that can be decoded, or it is too short (under `min_duration_s`) or too large,
            or the mask cannot be used.
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
            return read(opened, request, mask, on_progress, on_rows, cancelled, seek=request.start > 2 * SEEK_MARGIN_S)
        except SeekFailed:
            opened.reopen()
            return read(opened, request, mask, on_progress, on_rows, cancelled, seek=False)


def read(
    video: VideoFile,
    request: FrameRequest,
    mask: Mask | None,
    on_progress: OnFrames | None,
    on_rows: OnRows | None,
    cancelled: threading.Event | None,
    *,
    seek: bool,
) -> list[VideoClip]:
    """Read the clips, from a key frame before their start (`seek`) or from the start of the file.

    Raises:
        SeekFailed: `seek` is set and the file must be decoded from its start.
        MediaError: the file has no video that can be decoded, or it is too short or too large, or the mask is no mask.
        RequestError: the start is past the end of the video.
        Cancelled: `cancelled` was set.
    """
    decoder = Decoder(video.container, video.stream, video.path, cancelled)
    expected = header_length(video.container, video.stream)
    with nullcontext() if mask is None else mask.opened(request.start, decoder.usual_interval, cancelled) as filler:
        collector = FrameCollector(request, Pictures(video.path, filler), on_progress, on_rows)
        collector.set_expected_length(expected)
        origin = collect(decoder, collector, seek=seek)
        shown_end = collector.end
        collector.extend(decoder.packets_end - origin)
        length = collector.finish()
    check_length(video.path, request, collector.end, length)
    warnings = damage_warnings(video.path.name, collector, decoder, shown_end, expected)
    return [
        VideoClip(
            path=video.path,
            frames=each.frames,
            frame_count=each.taken,
            fps=float(each.view.rate),
            start_s=float(request.start),
            duration_s=float(length),
            source_duration_s=float(expected) or None,
            video_start_s=0.0 if decoder.by_order else float(origin),
            warnings=(*warnings, *filler.warnings) if filler is not None and each.view.masked else warnings,
        )
        for each in collector.views
    ]


def collect(decoder: Decoder, collector: FrameCollector, *, seek: bool) -> Fraction:
    """Give the collector the frames that it needs. Return the time of the first presented one, in seconds.

    Raises:
        SeekFailed: `seek` is set and the file must be decoded from its start.
        MediaError: no frame can be decoded, or the clip is too large.
    """
    start = collector.request.start
    frames = decoder.frames()
    first = next(frames, None)
    if first is None:
        raise MediaError(f"{decoder.path}: no frame can be decoded; the file is damaged, export it again")
    origin = first[0]
    frames = seek_near(decoder, origin + start) if seek else chain([first], frames)
    for begin, end, frame in frames:
        if end - origin <= start:
            decoder.damaged_packets = 0  # damage before the clip does not matter
        collector.add(frame, begin - origin, end - origin)
        if collector.complete:
            break
    return origin


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
