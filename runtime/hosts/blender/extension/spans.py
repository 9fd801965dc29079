"""Which seconds of a video a strip shows, and how fast.

Blender's frames are those of the scene. A strip plays its video at the video's own speed, or frame by frame at the
scene's rate, or retimed: then a second on the timeline is not a second of the video.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

_SAME = 1e-6
"""Blender keeps the rates of videos as float32."""


class StripError(Exception):
    """Nothing can be generated for a strip. The message says why, in one line."""


@dataclass(frozen=True)
class StripTimes:
    """What Blender says about a movie strip. Frames of the scene, unless it says frames of the video."""

    begin: float
    """Where the video's content would begin, were it not trimmed: `frame_start`."""
    first: int
    """The first frame that shows: `frame_final_start`."""
    end: int
    """One past the last frame that shows: `frame_final_end`."""
    trimmed_end: float
    """`frame_offset_end`."""
    skipped: int
    """Frames of the video that were cut off for good at its begin: `animation_offset_start`."""
    video_frames: int
    """Frames of the video that the content has: those of the file without those that were cut off for good."""
    video_fps: float
    scene_fps: float
    retimed: bool


@dataclass(frozen=True)
class Span:
    """The part of a video that a strip shows."""

    frame: int
    """The scene's frame at which it begins."""
    start_s: float
    """In the video."""
    duration_s: float
    """In the video."""
    speed: float
    """Seconds of the video in a second of the timeline."""

    @property
    def shown_s(self) -> float:
        """Its length on the timeline."""
        return self.duration_s / self.speed


def span(times: StripTimes) -> Span:
    """Return the part of its video that a strip shows. Stills that hold the first or last picture do not count.

    Raises:
        StripError: the strip shows nothing but such a still.
    """
    length = times.end + times.trimmed_end - times.begin
    if length <= 0 or times.video_frames <= 0:
        raise StripError("its video cannot be read")
    rate = _video_frames_per_frame(times, length)
    first = max(times.first, math.ceil(times.begin - _SAME))
    end = min(times.end, math.ceil(times.begin + length - _SAME))
    if end <= first:
        raise StripError("it shows only a still picture")
    speed = rate * times.scene_fps / times.video_fps
    return Span(
        frame=first,
        start_s=(times.skipped + (first - times.begin) * rate) / times.video_fps,
        duration_s=(end - first) * rate / times.video_fps,
        speed=1.0 if abs(speed - 1) < _SAME else speed,
    )


def _video_frames_per_frame(times: StripTimes, length: float) -> float:
    """Blender tells the strip's length in whole frames only, so the rate that was meant is the simplest that fits."""
    usual = (times.video_fps / times.scene_fps, 1.0)
    if times.retimed and length > 1:
        fastest, slowest = times.video_frames / (length - 1), times.video_frames / (length + 1)
        speeds = [(_simplest(slowest / rate, fastest / rate), rate) for rate in usual]
        speed, rate = min(speeds, key=lambda found: found[0].denominator)
        return float(speed) * rate
    rate = min(usual, key=lambda rate: abs(times.video_frames / rate - length))
    return rate if abs(times.video_frames / rate - length) < 1.5 else times.video_frames / length


def _simplest(low: float, high: float) -> Fraction:
    """Return the fraction from `low` to `high` with the least denominator."""
    denominator = next(number for number in itertools.count(1) if math.ceil(low * number) <= high * number)
    return Fraction(math.ceil(low * denominator), denominator)
