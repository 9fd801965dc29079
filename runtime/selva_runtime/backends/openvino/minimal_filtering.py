"""Convolutions over time with fewer multiplications: minimal filtering after Toom and Cook, known as Winograd's.

For a filter with r taps, m outputs need m + r - 1 multiplications instead of m r. In exact arithmetic the result is
the same: y = A^T [(G g) * (B^T d)] (Lavin & Gray, arXiv 1509.09308, equation 8). Over channels each multiplication is
one large matrix product, which a CPU runs at its full rate. Longer filters are split into pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
OUTPUTS = 4
"""m, the outputs of a tile. A larger m would multiply less and lose precision."""
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)
"""Points where the polynomials are evaluated, besides infinity. Small points keep float32's precision."""
MIN_FILTER_SIZE = 1300
"""Taps times channels. Below this the additions and copies cost what the multiplications save."""
Keep = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Filtering:
    """The three matrices for m = 4 outputs and r taps."""

    inputs: Matrix
    """B^T, (m + r - 1, m + r - 1)."""
    taps: Matrix
    """G, (m + r - 1, r)."""
    outputs: Matrix
    """A^T, (m, m + r - 1)."""


@cache
def filtering(taps: int) -> Filtering:
    """Return the matrices of Toom and Cook's polynomial multiplication, transposed. `taps` is 3 or 4."""
    count = OUTPUTS + taps - 1
    points = POINTS[: count - 1]

    def evaluated(coefficients: int) -> Matrix:
        """Return the powers of every point. At infinity only the highest power counts."""
        rows = [[point**power for power in range(coefficients)] for point in points]
        return np.array([*rows, [0.0] * (coefficients - 1) + [1.0]])

    interpolated = np.linalg.inv(evaluated(count)).T
    scale = np.array([*(math.prod(p - q for q in points if q != p) for p in points), 1.0])  # makes B^T integers
    return Filtering(
        inputs=np.round(interpolated * scale[:, None], 9),
        taps=evaluated(taps) / scale[:, None],
        outputs=evaluated(OUTPUTS).T,
    )


def use_minimal_filtering(openvino: Any, model: Any, *, tiles: int = 1, keep: Keep = lambda weights: weights) -> int:
    """Rewrite the wide convolutions over time of an OpenVINO model, and return how many. All its sizes must be known.

    A convolution with fewer than `tiles` tiles in a batch is not rewritten, because the new weights take twice the
    memory and time to read. `keep` stores the new weights, and the model uses the arrays that it returns.
    """
    writer = _Writer(openvino.opset13, tiles, keep)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            writer.convolution(node)
        elif node.get_type_name() in _ELEMENTWISE:
            writer.elementwise(node)
    return writer.rewritten


_ELEMENTWISE = ("Add", "Multiply", "Sigmoid", "Swish")
_TRANSPOSED = (0, 2, 1)


class _Writer:
    """Writes nodes with channels last, so that the rows of a tile are rows of a matrix product.

    Shapes: B batch, T time, C channels, n tiles, d the filter's dilation.
    """

    def __init__(self, ops: Any, fewest_tiles: int, keep: Keep) -> None:
        self._ops = ops
        self._fewest_tiles = fewest_tiles
        self._keep = keep
        self._last: dict[Any, Any] = {}  # value (B, C, T) → the same, (B, T, C)
        self._tiles: dict[Any, list[Any]] = {}
        self.rewritten = 0

    def convolution(self, node: Any) -> None:
        """Replace a convolution if that makes it faster."""
        weight = _filter(node)
        if weight is None:
            return
        width_out, width_in, taps = weight.shape
        if taps == 1 or taps * min(width_out, width_in) < MIN_FILTER_SIZE:
            return
        attributes = node.get_attributes()
        dilation, before = attributes["dilations"][-1], attributes["pads_begin"][-1]
        batch, *_, length = node.get_output_shape(0)
        if batch * length < OUTPUTS * self._fewest_tiles:
            return
        by_taps = filtering(3 if taps == 3 else 4)
        count = by_taps.taps.shape[1]
        pieces = -(-taps // count)
        tiles = self._inputs(node.input_value(0), by_taps, pieces, length, dilation, before)
        padded = np.zeros((width_out, width_in, pieces * count), np.float32)
        padded[..., :taps] = weight
        by_piece = np.ascontiguousarray(padded.reshape(width_out, width_in, pieces, count).swapaxes(1, 2))
        products = []
        for rows, factors in zip(tiles, by_taps.taps.astype(np.float32), strict=True):
            matrices = by_piece @ factors
            if pieces == 1:
                matrix = self._ops.constant(self._keep(matrices[:, 0]), shared_memory=True)
                products.append(self._ops.matmul(rows, matrix, False, True))
            else:
                products.append(self._sum_of_pieces(rows, matrices.swapaxes(1, 2)[:, :, None], dilation))
        stacked = self._ops.concat([self._ops.unsqueeze(product, _ints(2)) for product in products], 2)
        mixed = self._mixed(by_taps.outputs, stacked)
        whole = self._ops.reshape(mixed, _ints(batch, -1, width_out), False)
        self._replace(node, self._ops.slice(whole, _ints(0), _ints(length), _ints(1), _ints(1)))
        self.rewritten += 1

    def _sum_of_pieces(self, rows: Any, weight: Any, dilation: int) -> Any:
        """Convolve over the tiles: rows (B, n + pieces - 1, d, C) → (B, n, d, C')."""
        batch, tiles, _, width = rows.get_output_shape(0)
        flat = self._ops.reshape(rows, _ints(batch, 1, tiles * dilation, width), False)
        weight = self._ops.constant(self._keep(np.ascontiguousarray(weight)), shared_memory=True)
        summed = self._ops.convolution(
            self._ops.transpose(flat, _ints(0, 3, 1, 2)), weight, [1, 1], [0, 0], [0, 0], [1, dilation]
        )
        last = self._ops.transpose(summed, _ints(0, 2, 3, 1))
        return self._ops.reshape(last, _ints(batch, -1, dilation, weight.get_output_shape(0)[0]), False)

    def elementwise(self, node: Any) -> None:
        """Keep an elementwise node channels last if it follows a rewritten convolution."""
        values = node.input_values()
        transposed = [self._last[_key(v)] if _key(v) in self._last else _transposed_bias(self._ops, v) for v in values]
        if any(v is None for v in transposed) or not any(_key(v) in self._last for v in values):
            return
        kind = node.get_type_name()
        self._replace(node, getattr(self._ops, kind.lower())(*transposed))

    def _replace(self, node: Any, last: Any) -> None:
        value = node.output(0)
        shape = list(value.get_shape())
        if len(shape) == 4:
            flat = self._ops.reshape(last, _ints(shape[0], 1, shape[3], shape[1]), False)
            transposed = self._ops.transpose(flat, _ints(0, 3, 1, 2))
        else:
            transposed = self._ops.transpose(last, _ints(*_TRANSPOSED))
        value.replace(transposed.output(0))
        self._last[_key(transposed.output(0))] = last.output(0)

    def _inputs(
        self, value: Any, by_taps: Filtering, pieces: int, length: int, dilation: int, before: int
    ) -> list[Any]:
        """B^T d of every tile, each (B, n + pieces - 1, d, C). Piece p of the filter reads the tile p places later."""
        key = (_key(value), len(by_taps.inputs), pieces, dilation, before)
        if key not in self._tiles:
            step = OUTPUTS * dilation
            n = -(-length // step)
            rows = self._rows(value)
            batch, _, width = rows.get_shape()
            after = (n + pieces) * step - length - before
            rows = self._ops.pad(rows, _ints(0, before, 0), _ints(0, after, 0), "constant", np.float32(0))
            rows = self._ops.reshape(rows, _ints(batch, n + pieces, OUTPUTS, dilation, width), False)
            here, ahead = (
                self._ops.slice(rows, _ints(i), _ints(i + n + pieces - 1), _ints(1), _ints(1)) for i in (0, 1)
            )
            ahead = self._ops.slice(ahead, _ints(0), _ints(len(by_taps.inputs) - OUTPUTS), _ints(1), _ints(2))
            seen = self._mixed(by_taps.inputs, self._ops.concat([here, ahead], 2))
            mixed = [
                self._ops.squeeze(part, _ints(2))
                for part in self._ops.split(seen, _ints(2)[0], len(by_taps.inputs)).outputs()
            ]
            self._tiles[key] = mixed
        return self._tiles[key]

    def _rows(self, value: Any) -> Any:
        """Move the channels last: (B, C, T) or (B, C, 1, T) → (B, T, C)."""
        if _key(value) in self._last:
            return self._last[_key(value)]
        node, shape = value.get_node(), list(value.get_shape())
        if len(shape) == 4:
            transposed = self._ops.transpose(value, _ints(0, 2, 3, 1))
            return self._ops.reshape(transposed, _ints(shape[0], shape[3], shape[1]), False).output(0)
        if node.get_type_name() == "Transpose" and np.array_equal(_constant(node.input_value(1)), _TRANSPOSED):
            return node.input_value(0)
        return self._ops.transpose(value, _ints(*_TRANSPOSED)).output(0)

    def _mixed(self, matrix: Matrix, parts: Any) -> Any:
        """Multiply the matrix with the third axis of parts (B, n, parts, d, C)."""
        batch, tiles, count, dilation, width = parts.get_output_shape(0)
        flat = self._ops.reshape(parts, _ints(batch, tiles, count, dilation * width), False)
        mixed = self._ops.matmul(self._ops.constant(matrix.astype(np.float32)), flat, False, False)
        return self._ops.reshape(mixed, _ints(batch, tiles, len(matrix), dilation, width), False)


def _ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _key(value: Any) -> tuple[str, int]:
    return value.get_node().get_name(), value.get_index()


def _constant(value: Any) -> Any:
    """Return the values of a constant, also of a converted one. None if `value` is not a constant."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        kept = _constant(node.input_value(0))
        return None if kept is None else kept.astype(np.float32)
    return node.data if node.get_type_name() == "Constant" else None


def _filter(node: Any) -> Any:
    """Weights (outputs, inputs, taps) of a convolution over time only, of (B, C, T) or (B, C, 1, T), with stride 1.

    None for any other convolution, and in a float16 graph, where the sums of a tile would be too inexact.
    """
    weight, attributes = _constant(node.input_value(1)), node.get_attributes()
    if weight is None or node.get_output_element_type(0).to_string() != "f32":
        return None
    if {*attributes["strides"]} != {1} or attributes["auto_pad"] != "explicit":
        return None
    if weight.ndim == 4 and weight.shape[2] == node.get_output_shape(0)[2] == 1:
        weight = weight[:, :, 0]
    return weight if weight.ndim == 3 else None


def _transposed_bias(ops: Any, value: Any) -> Any:
    """Reshape a bias of one value per channel so that it fits (B, T, C). None if `value` is no such bias."""
    shape = list(value.get_shape())
    if math.prod(shape) == 1:
        return value
    bias = len(shape) in (3, 4) and math.prod(shape) == shape[1]
    return ops.reshape(value, _ints(1, 1, shape[1]), False).output(0) if bias else None
