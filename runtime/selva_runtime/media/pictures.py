"""Turn decoded frames of any pixel format into the upright RGB planes that a model sees."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Protocol, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from selva_bundle.errors import MediaError
from selva_runtime.media.container import AV_ERRORS, reason
from selva_runtime.media.resize import Axis, Planes, resize
from selva_runtime.media.views import View

Matrix = tuple[float, float, float, float]
"""a, b, c, d of x' = a x + c y, y' = b x + d y, which turns the stored picture upright."""


def display_matrix(frame: VideoFrame) -> Matrix:
    """Return what turns the stored picture upright."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know this kind of side data
        turn = math.radians(frame.rotation)
        return math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    if data is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(cast(bytes, data), np.int32)
    return float(matrix[0]), float(matrix[1]), float(matrix[3]), float(matrix[4])


def steps(matrix: Matrix) -> tuple[bool, bool, bool]:
    """Return whether the nearest quarter turn swaps the axes, and whether it then mirrors the rows and the columns."""
    a, b, c, d = matrix
    swaps = abs(b) + abs(c) > abs(a) + abs(d)
    return swaps, (b if swaps else d) < 0, (c if swaps else a) < 0


def upright(planes: Planes, matrix: Matrix) -> Planes:
    """Turn planes (C, H, W) by the nearest quarter turn, and mirror them if needed."""
    swaps, rows, columns = steps(matrix)
    if swaps:
        planes = planes.transpose(0, 2, 1)
    return planes[:, :: -1 if rows else 1, :: -1 if columns else 1]


def stored(axes: tuple[Axis, Axis], matrix: Matrix) -> tuple[Axis, Axis]:
    """Return how the stored picture's height and width are resized for these axes of the upright one."""
    swaps, *mirrors = steps(matrix)
    height, width = (
        Axis(axis.size, range(axis.size - axis.kept.stop, axis.size - axis.kept.start)) if mirror else axis
        for axis, mirror in zip(axes, mirrors, strict=True)
    )
    return (width, height) if swaps else (height, width)


class Filler(Protocol):
    """Fills what a mask does not keep."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the mask, as far as it was used."""

    def fill(self, planes: Planes, time: Fraction) -> None:
        """Fill planes of an upright frame, (3, H, W), in place. Times are seconds from the first frame, ascending."""


class Mask(Protocol):
    """Something that can be opened to fill the frames of a video."""

    def opened(self, start: Fraction, interval: Fraction, cancelled: Event | None) -> AbstractContextManager[Filler]:
        """Open it for a video of which a frame lasts `interval` seconds, to be read from `start` (seconds) on."""


class Pictures:
    """Turns decoded frames into RGB planes, fills them if there is a mask, and knows how to turn them upright."""

    def __init__(self, path: Path, filler: Filler | None = None) -> None:
        self.path, self.filler = path, filler
        self.reformatter = VideoReformatter()
        self.rotation: int | None = None
        self.matrix: Matrix = (1.0, 0.0, 0.0, 1.0)

    def planes(self, frame: VideoFrame, pixels: str = "rgb24") -> tuple[Planes, Matrix]:
        """Return the planes of a frame as it is stored, uint8 (C, H, W), and what turns them upright.

        Raises:
            MediaError: the pixel format cannot be converted.
        """
        try:
            rows = self.reformatter.reformat(frame, format=pixels).to_ndarray()
        except AV_ERRORS as error:
            raise MediaError(
                f"{self.path}: {frame.format.name} frames cannot be read ({reason(error)}); convert it to H.264 first"
            ) from error
        # PyAV's side data and its frame refer to each other, so frames whose side data was read stay in memory until
        # Python's garbage collector runs. Reading the rotation does not do that, so read the matrix once for each.
        if frame.rotation != self.rotation:
            self.rotation, self.matrix = frame.rotation, display_matrix(frame)
        return rows.astype(np.uint8, copy=False).transpose(2, 0, 1), self.matrix

    def masked(self, planes: Planes, matrix: Matrix, time: Fraction) -> Planes:
        """Return planes of a stored picture with what the mask does not keep filled, or as they are without a mask.

        Raises:
            MediaError: the mask cannot be used.
        """
        if self.filler is not None:
            planes = planes.copy(order="K")  # the decoder may still need its frame
            self.filler.fill(upright(planes, matrix), time)
        return planes


class Picture:
    """A decoded frame, converted when a view first takes it, and once for all views. `time` counts from the first."""

    def __init__(self, pictures: Pictures, frame: VideoFrame, time: Fraction) -> None:
        self._pictures, self._frame, self._time = pictures, frame, time
        self._seen: dict[View, Planes] = {}

    def seen(self, view: View) -> Planes:
        """Return what a view shows, uint8 (3, size, size).

        Raises:
            MediaError: the pixel format cannot be converted, or the mask cannot be used.
        """
        if view not in self._seen:
            planes, matrix = self._masked if view.masked else self._plain
            axes = view.axes(*upright(planes, matrix).shape[1:])
            self._seen[view] = upright(resize(planes, *stored(axes, matrix)), matrix)
        return self._seen[view]

    @cached_property
    def _plain(self) -> tuple[Planes, Matrix]:
        return self._pictures.planes(self._frame)

    @cached_property
    def _masked(self) -> tuple[Planes, Matrix]:
        planes, matrix = self._plain
        return self._pictures.masked(planes, matrix, self._time), matrix
