"""What a part of a model sees of a video: frames of one size at one rate. A model may see a video in several ways."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from selva_bundle.errors import RequestError
from selva_bundle.lengths import exact_seconds
from selva_runtime.media.resize import Axis

SQUASH, CROP = "squash", "crop"


@dataclass(frozen=True, kw_only=True)
class View:
    """A stream of square frames.

    Raises:
        RequestError: size or rate is not above 0, or there is no such fit.
    """

    size: int
    """Width and height in pixels."""
    fps: float
    """Frames in a second."""
    fit: str = SQUASH
    """"squash": the whole frame, its aspect ratio is not kept. "crop": the middle square, the aspect ratio is kept."""

    masked: bool = True
    """If the video has a mask, this view is seen through it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0 and self.size > 0):
            raise RequestError(f"{self.fps} frames a second of {self.size} pixels: both must be above 0")
        if self.fit not in (SQUASH, CROP):
            raise RequestError(f"fit {self.fit!r}: must be {SQUASH} or {CROP}")

    @property
    def rate(self) -> Fraction:
        """`fps`, exact."""
        return exact_seconds(self.fps)

    @property
    def frame_bytes(self) -> int:
        """Size of one frame."""
        return 3 * self.size * self.size

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        """Return how the height and the width of an upright picture are resized, both in pixels."""
        short = min(height, width) if self.fit == CROP else 0
        sizes = [self.size * side // short if short else self.size for side in (height, width)]
        tops = [round(Fraction(size - self.size, 2)) for size in sizes]  # halves to even
        first, second = (Axis(size, range(top, top + self.size)) for size, top in zip(sizes, tops, strict=True))
        return first, second
