"""Sizes of a graph's outputs from those of its inputs, so that memory is there before the graph runs.

The manifest names variable axes ("stems", "latent"), also as multiples ("2*stems", "512*latent").
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import BackendError
from .manifest import Graph
from .ports import Port


def output_shapes(graph: Graph, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shape of every output; raises `BackendError` where the inputs contradict each other."""
    axes: dict[str, int] = {}
    for port in graph.inputs:
        for size, real in zip(port.shape, inputs[port.name], strict=True):
            factor, axis = _split(size)
            if axis is not None and (real % factor or axes.setdefault(axis, real // factor) != real // factor):
                raise BackendError(f"graph {graph.name}: {port.name} has {real} {size}, other inputs say otherwise")
    return {port.name: tuple(_size(graph, port, size, axes) for size in port.shape) for port in graph.outputs}


def _size(graph: Graph, port: Port, size: int | str, axes: Mapping[str, int]) -> int:
    factor, axis = _split(size)
    if axis is None:
        return factor
    if axis not in axes:
        raise BackendError(f"graph {graph.name}: nothing says how many {axis} {port.name} has; export the bundle again")
    return factor * axes[axis]


def _split(size: int | str) -> tuple[int, str | None]:
    if isinstance(size, int):
        return size, None
    factor, _, axis = size.rpartition("*")
    if factor and not factor.isdecimal():
        raise BackendError(f"the manifest's axis {size!r} is unknown; export the bundle again")
    return int(factor or 1), axis
