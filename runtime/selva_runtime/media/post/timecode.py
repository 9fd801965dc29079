"""Timecode of a video: SMPTE 12M labels of its frames, and the frame rate behind them.

A label counts frames. At 23.976, 29.97 and 59.94 frames a second it runs slower than a clock. Drop-frame timecode
(`;` before the frames) leaves out labels, not frames, so that it stays near the clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from av.stream import Stream
from av.video.stream import VideoStream

from selva_bundle.errors import RequestError
from selva_runtime.media.video import VideoFile

LABEL = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})([:;.])([0-9]{2})")
RATE_TOLERANCE = Fraction(4, 10_000)
"""A header's rate within this part of a standard rate is that rate. 30 and 29.97 differ by 10 parts in 10,000."""
MAX_DENOMINATOR = 1001
DROP_RATES = (Fraction(30_000, 1001), Fraction(60_000, 1001))
DAY_MINUTES = 24 * 60


@dataclass(frozen=True, kw_only=True)
class Timecode:
    """A place in time as a number of frames since 00:00:00:00."""

    frame: int
    rate: Fraction
    """Frames a second."""
    drop: bool = False

    @property
    def seconds(self) -> Fraction:
        """Real seconds since 00:00:00:00."""
        return self.frame / self.rate

    def __str__(self) -> str:
        label_rate, frame = round(self.rate), self.frame
        if self.drop:
            dropped, minute = _dropped_labels(self.rate), label_rate * 60 - _dropped_labels(self.rate)
            tens, rest = divmod(frame, minute * 10 + dropped)  # the first minute of ten drops nothing
            frame += dropped * (9 * tens + max(0, (rest - dropped) // minute))
        seconds, frames = divmod(frame, label_rate)
        minutes, second = divmod(seconds, 60)
        hour, minute = divmod(minutes % DAY_MINUTES, 60)
        return f"{hour:02}:{minute:02}:{second:02}{';' if self.drop else ':'}{frames:02}"


def parse_timecode(text: str, rate: Fraction) -> Timecode:
    """Read `HH:MM:SS:FF`, or `HH:MM:SS;FF` for drop-frame, at `rate` frames a second.

    Raises:
        RequestError: it is not a timecode, or there is no such frame at this rate.
    """
    found = LABEL.fullmatch(text)
    if not found:
        raise RequestError(f"timecode {text!r} is not HH:MM:SS:FF, such as 01:00:00:00, or HH:MM:SS;FF for drop-frame")
    hour, minute, second, frames = (int(found[group]) for group in (1, 2, 3, 5))
    drop, label_rate = found[4] != ":", round(rate)
    if hour > 23 or minute > 59 or second > 59 or frames >= label_rate:
        raise RequestError(f"timecode {text} does not exist at {float(rate):.5g} frames a second; check its frames")
    minutes, frame = 60 * hour + minute, ((60 * hour + minute) * 60 + second) * label_rate + frames
    if drop:
        if rate not in DROP_RATES:
            raise RequestError(
                f"timecode {text} is drop-frame, but the video has {float(rate):.5g} frames a second; use :"
            )
        dropped = _dropped_labels(rate)
        if minute % 10 and not second and frames < dropped:
            raise RequestError(f"timecode {text} is one of those that drop-frame leaves out; use {dropped:02} frames")
        frame -= dropped * (minutes - minutes // 10)
    return Timecode(frame=frame, rate=rate, drop=drop)


def _dropped_labels(rate: Fraction) -> int:
    """Labels that drop-frame leaves out at the begin of a minute: 2 at 29.97 frames a second, 4 at 59.94."""
    return round(rate) // 15


def frame_rate(stream: VideoStream) -> Fraction:
    """Return the frames a second of a video: the standard rate that is meant, or what its header says."""
    said = Fraction(stream.guessed_rate or stream.average_rate or 25)
    for rate in (Fraction(round(said)), Fraction(round(said * 1001 / 1000) * 1000, 1001)):
        if rate and abs(said / rate - 1) < RATE_TOLERANCE:
            return rate
    return said.limit_denominator(MAX_DENOMINATOR)


def source_timecode(video: VideoFile) -> str | None:
    """Return the timecode of the first frame as the file has it: a timecode track's, or a tag's."""
    tracks: list[Stream] = [video.stream, *video.container.streams.data]
    for tags in (*(track.metadata for track in tracks), video.container.metadata):
        for key, value in tags.items():
            if key.lower() == "timecode":
                return value
    return None
