"""What a timeline shows, whatever its file format: one picture and the stems under it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
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
    first: Timecode
    """Of the first frame."""
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
    def end_s(self) -> Fraction:
        """End of the stems, after the first frame."""
        return Fraction(self.start_samples + self.samples, self.rate_hz)
