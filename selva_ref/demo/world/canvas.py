"""Draws soft-edged shapes on all frames of a clip at once.

Coordinates are fractions of the frame with (0, 0) at the upper left corner, so that a scene can be rendered at any
size. Every argument may be one number or one per frame. Shapes: T frames, H, W pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]
Number = float | Array
Colour = tuple[float, float, float]
"""Red, green and blue from 0 to 1."""


class Canvas:
    """Frames (T, size, size, 3) float32 from 0 to 1, painted from back to front."""

    def __init__(self, frames: int, size: int) -> None:
        self.frames, self.size = frames, size
        self.picture = np.zeros((frames, size, size, 3), np.float32)
        self._pixel = ((np.arange(size) + 0.5) / size).astype(np.float32)

    def gradient(self, top: Colour, bottom: Colour) -> None:
        """Fills the frame with a gradient from one colour at the top to another at the bottom."""
        shade = self._pixel[:, None, None]
        self.picture[:] = (1 - shade) * np.asarray(top, np.float32) + shade * np.asarray(bottom, np.float32)

    def disc(
        self, x: Number, y: Number, radius: Number, colour: Colour, *, squash: Number = 1.0, alpha: Number = 1.0
    ) -> None:
        """Paints an ellipse `radius` wide and `squash * radius` high."""
        x, y, radius, squash = (self._per_frame(v) for v in (x, y, radius, squash))
        reach: Array = np.maximum(radius, radius * squash)
        rows, columns = self._window(x - reach, y - reach, x + reach, y + reach)
        dx, dy = self._pixel[columns] - x, (self._pixel[rows, None] - y) / squash
        self._paint(rows, columns, radius - np.sqrt(dx * dx + dy * dy), colour, alpha)

    def bar(
        self, x0: Number, y0: Number, x1: Number, y1: Number, width: Number, colour: Colour, *, alpha: Number = 1.0
    ) -> None:
        """Paints a line with round ends, `width` across, from one point to another."""
        x0, y0, x1, y1, width = (self._per_frame(v) for v in (x0, y0, x1, y1, width))
        half = width / 2
        rows, columns = self._window(
            np.minimum(x0, x1) - half, np.minimum(y0, y1) - half, np.maximum(x0, x1) + half, np.maximum(y0, y1) + half
        )
        dx, dy = self._pixel[columns] - x0, self._pixel[rows, None] - y0
        ax, ay = x1 - x0, y1 - y0
        along = np.clip((dx * ax + dy * ay) / np.maximum(ax * ax + ay * ay, 1e-9), 0, 1)
        self._paint(rows, columns, half - np.hypot(dx - along * ax, dy - along * ay), colour, alpha)

    def box(
        self, left: Number, top: Number, right: Number, bottom: Number, colour: Colour, *, alpha: Number = 1.0
    ) -> None:
        """Paints an upright rectangle."""
        left, top, right, bottom = (self._per_frame(v) for v in (left, top, right, bottom))
        rows, columns = self._window(left, top, right, bottom)
        x, y = self._pixel[columns], self._pixel[rows, None]
        self._paint(
            rows, columns, np.minimum(np.minimum(x - left, right - x), np.minimum(y - top, bottom - y)), colour, alpha
        )

    def frames_uint8(self, rng: np.random.Generator, grain: float) -> npt.NDArray[np.uint8]:
        """Returns (T, 3, H, W), with camera noise of deviation `grain`."""
        noise = rng.standard_normal((self.size, self.size, 1), dtype=np.float32) * np.float32(grain)
        levels = np.clip((self.picture + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(levels.transpose(0, 3, 1, 2))

    def _per_frame(self, value: Number) -> Array:
        """Reshapes to (T or 1, 1, 1), to broadcast against rows and columns."""
        return np.atleast_1d(np.asarray(value, np.float32))[:, None, None]

    def _window(self, left: Floats, top: Floats, right: Floats, bottom: Floats) -> tuple[slice, slice]:
        """The rows and columns that the shape can touch in any frame."""

        def span(low: Floats, high: Floats) -> slice:
            start, stop = int(low.min() * self.size) - 1, int(high.max() * self.size) + 2
            return slice(min(max(start, 0), self.size), min(max(stop, 0), self.size))

        return span(top, bottom), span(left, right)

    def _paint(self, rows: slice, columns: slice, inside: Array, colour: Colour, alpha: Number) -> None:
        """Blends in the colour where `inside`, the distance to the edge, is positive; edges are one pixel soft."""
        cover = np.clip(inside * self.size + 0.5, 0, 1) * self._per_frame(alpha)
        below = self.picture[:, rows, columns]
        for channel, level in enumerate(colour):
            below[..., channel] += cover * (np.float32(level) - below[..., channel])


class Silhouette(Canvas):
    """Paints everything white, to see where something is drawn."""

    def _paint(self, rows: slice, columns: slice, inside: Array, colour: Colour, alpha: Number) -> None:
        super()._paint(rows, columns, inside, (1, 1, 1), alpha)
