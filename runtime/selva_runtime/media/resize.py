"""Antialiased bicubic resize of 8-bit planes, with exactly the results that the video encoder was trained on.

In training, frames were resized by `torch.nn.functional.interpolate(x_uint8, mode="bicubic", antialias=True)`, but the
runtime has no torch. The algorithm is Pillow's: a horizontal pass rounded to 8 bits, then a vertical one, with integer
weights of as many bits as fit 16-bit words. Here each pass is a few float32 matrix products of integers (exact up to
2^24), one for each block of output columns, over only the input columns that the block needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.uint8]

CUBIC_A = -0.5
SUPPORT = 2.0
PIECE = 4096
"""Outputs whose weights are computed at a time."""
BLOCK = 16
"""Output columns in one matrix product. Wider blocks multiply more zeros, narrower ones need more calls."""
STRIPE_PIXELS = 1 << 18
"""Input pixels converted to float32 at a time (1 MiB). This limits the memory and fits a core's cache."""


@dataclass(frozen=True)
class Axis:
    """Into how many pixels an axis is resized, and which of them are kept."""

    size: int
    kept: range


@dataclass(frozen=True)
class Taps:
    """Weights of one axis: `blocks` are (first output, first input, weights (inputs, outputs))."""

    bits: int
    offsets: NDArray[np.int32]
    """(outputs,) correction for the centring of the input by 128, plus one half for rounding."""
    blocks: tuple[tuple[int, int, NDArray[np.float32]], ...]


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5, of any shape. It is zero from |x| = 2 on."""
    x = np.abs(x)
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC_A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def kernels(size_in: int, size_out: int, outputs: range) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first input and the weights (inputs, zero behind the last one) of some of the outputs of an axis."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centers = scale * (np.arange(outputs.start, outputs.stop) + 0.5)
    first = np.maximum((centers - SUPPORT * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + SUPPORT * stretch + 0.5).astype(np.int64), size_in)
    index = first[:, None] + np.arange((last - first).max())
    weights = cubic((index - centers[:, None] + 0.5) / stretch) * (index < last[:, None])
    return first, weights / weights.sum(axis=1, keepdims=True)


@lru_cache(maxsize=64)
def taps(size_in: int, size_out: int, outputs: range) -> Taps:
    """Return the integer weights of the outputs in blocks along the diagonal, quantised as torch and Pillow do.

    The largest weight of the whole axis decides the bits, and an axis may have a million outputs of which 224 are kept.
    """
    pieces = (range(low, min(low + PIECE, size_out)) for low in range(0, size_out, PIECE))
    largest = max(kernels(size_in, size_out, piece)[1].max() for piece in pieces)
    bits = next((n for n in range(22) if int(0.5 + largest * 2 ** (n + 1)) >= 1 << 15), 22)
    first, weights = kernels(size_in, size_out, outputs)
    weights = np.trunc(weights * 2**bits + np.copysign(0.5, weights))
    offsets = (weights.sum(axis=1) * 128 + (1 << (bits - 1))).astype(np.int32)
    blocks = []
    for start in range(0, len(outputs), BLOCK):
        stop = min(start + BLOCK, len(outputs))
        low = int(first[start])
        high = min(size_in, int(first[stop - 1]) + weights.shape[1])
        block = np.zeros((high - low, stop - start), np.float32)
        for column, output in enumerate(range(start, stop)):
            rows = block[first[output] - low :, column]
            count = min(len(rows), weights.shape[1])
            rows[:count] = weights[output, :count]
        blocks.append((start, low, block))
    return Taps(bits, offsets, tuple(blocks))


def centred(rows: Planes) -> NDArray[np.float32]:
    """Map 0..255 to -128..127. That halves the sums, so they stay exact in float32."""
    return (rows ^ np.uint8(128)).view(np.int8).astype(np.float32)


def rounded(sums: NDArray[np.float32], offsets: NDArray[np.int32], bits: int) -> Planes:
    """Add the offsets, divide by 2^bits and clip to 0..255."""
    levels = sums.astype(np.int32)
    levels += offsets
    levels >>= bits
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def horizontal(planes: Planes, axis: Axis) -> Planes:
    """Resize (C, H, W) along the rows, in stripes of rows.

    The planes of a frame are often interleaved, so a stripe of all planes is read from memory only once.
    """
    channels, height, width = planes.shape
    if width == axis.size:
        return planes[:, :, axis.kept.start : axis.kept.stop]
    columns = taps(width, axis.size, axis.kept)
    result = np.empty((channels, height, len(axis.kept)), np.uint8)
    step = max(1, STRIPE_PIXELS // max(width, len(axis.kept)))
    sums = np.empty((min(step, height), len(axis.kept)), np.float32)
    for top in range(0, height, step):
        for plane, target in zip(planes, result, strict=True):
            rows = centred(plane[top : top + step])
            part = sums[: len(rows)]
            for start, low, block in columns.blocks:
                np.matmul(rows[:, low : low + len(block)], block, out=part[:, start : start + block.shape[1]])
            target[top : top + step] = rounded(part, columns.offsets, columns.bits)
    return result


def vertical(planes: Planes, axis: Axis) -> Planes:
    """Resize (C, H, W) along the columns."""
    channels, height, width = planes.shape
    if height == axis.size:
        return planes[:, axis.kept.start : axis.kept.stop]
    lines = taps(height, axis.size, axis.kept)
    result = np.empty((channels, len(axis.kept), width), np.uint8)
    for plane, target in zip(planes, result, strict=True):
        for start, low, block in lines.blocks:
            sums = block.T @ centred(plane[low : low + len(block)])
            stop = start + block.shape[1]
            target[start:stop] = rounded(sums, lines.offsets[start:stop, None], lines.bits)
    return result


def resize(planes: Planes, height: Axis, width: Axis) -> Planes:
    """Resize `planes` (C, H, W), of any strides, and keep a part. The aspect ratio is what the axes say."""
    return vertical(horizontal(planes, width), height).copy()
