"""Turn decoded frames of any pixel format into the upright RGB planes that the model sees."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from selva_bundle.errors import MediaError
from selva_runtime.media.container import AV_ERRORS, reason
from selva_runtime.media.resize import Planes, resize


def display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """Return a, b, c, d of x' = a x + c y, y' = b x + d y, which turns the stored picture upright."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know this kind of side data
        turn = math.radians(frame.rotation)
        return math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    if data is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(cast(bytes, data), np.int32)
    return float(matrix[0]), float(matrix[1]), float(matrix[3]), float(matrix[4])


def upright(planes: Planes, matrix: tuple[float, float, float, float]) -> Planes:
    """Turn planes (C, H, W) by the nearest quarter turn, and mirror them if needed."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        planes, a, d = planes.transpose(0, 2, 1), c, b
    return planes[:, :: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class Pictures:
    """Turns decoded frames into upright RGB planes of the model's size."""

    def __init__(self, size: int, path: Path) -> None:
        self.size, self.path = size, path
        self.reformatter = VideoReformatter()
        self.rotation: int | None = None
        self.matrix = (1.0, 0.0, 0.0, 1.0)

    def __call__(self, frame: VideoFrame) -> Planes:
        """Return uint8 (3, size, size).

        Raises:
            MediaError: the pixel format cannot be converted.
        """
        try:
            rgb = self.reformatter.reformat(frame, format="rgb24").to_ndarray()
        except AV_ERRORS as error:
            raise MediaError(
                f"{self.path}: {frame.format.name} frames cannot be read ({reason(error)}); convert it to H.264 first"
            ) from error
        # PyAV's side data and its frame refer to each other, so frames whose side data was read stay in memory until
        # Python's garbage collector runs. Reading the rotation does not do that, so read the matrix once for each.
        if frame.rotation != self.rotation:
            self.rotation, self.matrix = frame.rotation, display_matrix(frame)
        planes = rgb.astype(np.uint8, copy=False).transpose(2, 0, 1)
        return upright(resize(planes, self.size), self.matrix)
