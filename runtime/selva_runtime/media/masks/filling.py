"""Fill the part of a picture that a mask does not keep. White (255) keeps, black (0) fills, grey blends both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selva_bundle.errors import RequestError
from selva_runtime.media.resize import Axis, Planes, resize

Keep = NDArray[np.uint8]
"""(H, W): how much of each pixel is kept, 0 to 255."""

GREY, BLACK, BLUR = "grey", "black", "blur"
FILLS = (GREY, BLACK, BLUR)
LEVELS = {GREY: 128, BLACK: 0}
BLUR_PIXELS = 2
"""A blurred picture is one of 2 x 2 pixels, enlarged. Finer ones show the motion of what is filled."""
_NOTHING = 16
"""If no pixel is kept by more than this of 255, the mask keeps nothing."""


def check_fill(fill: str) -> str:
    """Check and return the name of a fill.

    Raises:
        RequestError: there is no such fill.
    """
    if fill not in FILLS:
        raise RequestError(f"mask fill {fill!r}: must be grey, black or blur")
    return fill


def whole(size: int) -> Axis:
    """Return an axis of which all pixels are kept."""
    return Axis(size, range(size))


def blurred(planes: Planes) -> Planes:
    """Return planes (C, H, W) with nothing but the colours of the quarters of the picture, which blend smoothly."""
    small = resize(planes, whole(BLUR_PIXELS), whole(BLUR_PIXELS))
    return resize(small, *map(whole, planes.shape[1:]))


def fill_outside(planes: Planes, keep: Keep, fill: str) -> None:
    """Blend planes (3, H, W), of any strides, with the fill, in place: exactly the picture at 255, the fill at 0."""
    filled = blurred(planes) if fill == BLUR else [np.uint8(LEVELS[fill])] * len(planes)
    outside = keep == 0
    soft = np.nonzero(outside ^ (keep < 255))
    weight = keep[soft].astype(np.uint16)
    for plane, behind in zip(planes, filled, strict=True):
        there = plane[soft].astype(np.uint16)
        sums = there * weight + np.broadcast_to(behind, plane.shape)[soft] * (255 - weight)
        np.copyto(plane, behind, where=outside)
        plane[soft] = (sums + 127) // 255


@dataclass
class Seen:
    """What was seen of a mask."""

    name: str
    least: int = 255
    most: int = 0

    def add(self, keep: Keep) -> None:
        """Look at a frame of the mask."""
        self.least = min(self.least, int(keep.min()))
        self.most = max(self.most, int(keep.max()))

    def warnings(self) -> tuple[str, ...]:
        """Return a warning if all of the picture is filled, or nothing."""
        if self.most < _NOTHING:
            return (f"{self.name}: keeps nothing of this part (its highest value is {self.most} of 255; white is 255)",)
        if self.least > 255 - _NOTHING:
            return (f"{self.name}: fills nothing of this part (its lowest value is {self.least} of 255; black is 0)",)
        return ()


def masked_frames(frames: Any, mask: Any, fill: str, *, invert: bool) -> tuple[Planes, tuple[str, ...]]:
    """Return a copy of frames, uint8 (T, 3, H, H), that a mask was applied to, and warnings.

    `mask` is uint8 or bool, (H, H) for all frames or (T or more, H, H). None changes nothing.

    Raises:
        RequestError: the mask has another type or shape, there is no such fill, or the frames are not in the computer's
            memory.
    """
    check_fill(fill)
    if mask is None:
        return frames, ()
    if not isinstance(frames, np.ndarray):
        raise RequestError("a mask needs frames as a NumPy array; mask frames on a device before you give them")
    shape, mask = frames.shape, np.asarray(mask)
    if mask.dtype == bool:
        mask = mask * np.uint8(255)
    if mask.dtype != np.uint8 or mask.shape[-2:] != shape[-2:] or mask.ndim not in (2, 3):
        size = f"{shape[-2]}, {shape[-1]}"
        raise RequestError(f"the mask is {mask.dtype} {mask.shape}; give uint8 or bool ({size}) or (frames, {size})")
    if mask.ndim == 3 and len(mask) < len(frames):
        raise RequestError(f"the mask has {len(mask)} frames; give {len(frames)}, or one for all")
    seen, filled = Seen("the mask"), frames.copy()
    for number, planes in enumerate(filled):
        keep = mask if mask.ndim == 2 else mask[number]
        keep = 255 - keep if invert else keep
        seen.add(keep)
        fill_outside(planes, keep, fill)
    return filled, seen.warnings()
