"""What a timeline shows, whatever its file format: one picture and the stems under it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path

from selva_runtime.media.post.timecode import Timecode


@dataclass(frozen=True, kw_only=True)
class StemTrack:
    """A track with one stem."""

    name: str
    takes: tuple[Path, ...]
    """WAV files of the same length. The first one is heard."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """The whole video from its first frame on, and stems that all begin at the same time."""

    name: str
    video: Path
    size: tuple[int, int]
    """Width and height of the picture in pixels."""
    first: Timecode
    """Of the first frame, in the timeline."""
    video_first: Timecode
    """Of the first frame, in the video's file."""
    frames: int
    """Length of the video."""
    tracks: tuple[StemTrack, ...]
    start_s: Fraction
    """Begin of the stems, after the first frame."""
    samples: int
    """Length of each stem."""
    rate_hz: int
    timed_stems: bool
    """Whether the files of the stems have the timecode too."""

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        return self.first.rate

    @property
    def start_samples(self) -> int:
        """Begin of the stems, in their samples."""
        return round(self.start_s * self.rate_hz)

    @property
    def stem_samples_begin(self) -> int:
        """Timecode of a stem's first sample in its file, in samples."""
        return round((self.first.seconds + self.start_s) * self.rate_hz) if self.timed_stems else 0

    @property
    def start_frame(self) -> int:
        """Frame at which the stems begin in formats that have whole frames only: the nearest one."""
        return round(self.start_s * self.rate)

    @property
    def moved_s(self) -> float:
        """Seconds by which the stems come too late at `start_frame`."""
        return float(self.start_frame / self.rate - self.start_s)

    @property
    def stem_frames(self) -> int:
        """Whole frames of a stem. A stem of whole frames may be rounded to a sample less."""
        return max(1, floor(Fraction(self.samples + 1, self.rate_hz) * self.rate))

    def lanes(self) -> Iterator[tuple[str, Path, bool]]:
        """Yield a track's name, its file, and whether it is heard, for formats without alternative takes."""
        for stem in self.tracks:
            for number, file in enumerate(stem.takes, 1):
                yield stem.name if number == 1 else f"{stem.name} (take {number})", file, number == 1
