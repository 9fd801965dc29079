"""Compute the sizes of a graph's outputs from its inputs, so that memory can be allocated before the graph runs."""

from __future__ import annotations

from collections.abc import Mapping

from selva_bundle.errors import BackendError
from selva_bundle.manifest import Graph
from selva_bundle.ports import split_axis


def output_shapes(graph: Graph, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every output.

    Raises:
        BackendError: two inputs disagree about the size of an axis.
    """
    axes: dict[str, int] = {}
    for port in graph.inputs:
        for size, real in zip(port.shape, inputs[port.name], strict=True):
            factor, axis = split_axis(size)
            if axis and (real % factor or axes.setdefault(axis, real // factor) != real // factor):
                raise BackendError(f"graph {graph.name}: {port.name} has {real} {size}, other inputs say otherwise")
    return {port.name: port.sizes(axes) for port in graph.outputs}
