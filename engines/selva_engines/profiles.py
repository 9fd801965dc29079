"""Describe the engine of each graph in a frozen dataclass, separate from building it.

Ranges come from the bundle's sequence rules, so every clip that the runtime accepts fits. An axis is fixed if the
runtime always uses one size: for a dynamic axis the kernels must suit a whole range, which costs speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selva_bundle.ports import (
    DECODER,
    FLOWS,
    TEXT_CLIP,
    TEXT_T5,
    VIDEO_BACKBONE,
    VIDEO_CLIP,
    VIDEO_POOL,
    VIDEO_SELECT,
    Port,
    Size,
    split_axis,
)
from selva_engines.errors import EngineRequestError
from selva_engines.source import BundleSource, GraphSource

MAX_STEMS = 8
SEGMENTS_PER_CALL = 32
"""Most segments that the graphs of the video take at once, and most pictures of `video_clip`. 8 s are 24 segments and
64 pictures. They are independent and have the largest activations of all, so a longer clip takes several calls."""
OPTIMAL_TOKENS = 16
"""Optimal number of tokens of a prompt, which is a few words."""
WORKSPACE_BYTES = 16 * 2**30
"""Limit of scratch memory at the largest shapes. The decoder needs the most: 5 GB for eight stems of 30 s at 44.1 kHz.
A run allocates only what its own shapes need."""

_SOFTMAX = {"softmax": ("SOFTMAX",)}
_NORMS = {"norm statistics": ("NORMALIZATION", "REDUCE", "UNARY.SQRT", "UNARY.RECIP")}
_ANGLES = ("UNARY.COS", "UNARY.SIN")
_ISLANDS: dict[str, dict[str, tuple[str, ...]]] = {
    TEXT_T5: {**_SOFTMAX, **_NORMS},
    TEXT_CLIP: {**_SOFTMAX, **_NORMS},
    VIDEO_BACKBONE: {**_SOFTMAX, **_NORMS},
    VIDEO_SELECT: {**_SOFTMAX, **_NORMS},
    VIDEO_POOL: {**_SOFTMAX, **_NORMS},
    VIDEO_CLIP: {**_SOFTMAX, **_NORMS},
    **{conditions: {"rotation tables": _ANGLES, "means over tokens": ("REDUCE",)} for conditions, _ in FLOWS.values()},
    **{step: {**_SOFTMAX, **_NORMS, "time embedding": _ANGLES} for _, step in FLOWS.values()},
    DECODER: {**_SOFTMAX, **_NORMS, "snake": ("UNARY.COS",)},
}
_INDEPENDENT_ROWS = {
    VIDEO_BACKBONE: "segments",
    VIDEO_SELECT: "segments",
    VIDEO_POOL: "segments",
    VIDEO_CLIP: "clip",
}
"""The axis of these graphs of which few rows are taken at once."""
_FLOAT32_PRODUCTS = {TEXT_T5: "the feed-forward output of every T5 block, which leaves float16's range"}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Sizes of one axis: smallest, the one to optimise for, largest."""

    min: int
    opt: int
    max: int

    def times(self, factor: int) -> Range:
        """Return the range with every size multiplied by `factor`."""
        return Range(min=factor * self.min, opt=factor * self.opt, max=factor * self.max)


@dataclass(frozen=True, kw_only=True)
class InputProfile:
    """One input of an engine."""

    name: str
    dtype: str
    ranges: tuple[Range, ...]
    """One per dimension."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, optimal and largest shape."""
        return (
            tuple(r.min for r in self.ranges),
            tuple(r.opt for r in self.ranges),
            tuple(r.max for r in self.ranges),
        )


@dataclass(frozen=True, kw_only=True)
class EngineDescription:
    """Everything that decides how the engine of one graph is built."""

    graph: str
    precision: str
    """Precision of the bundle. "fp16" engines have float16 products and float32 islands, as in their ONNX file."""
    inputs: tuple[InputProfile, ...]
    workspace_bytes: int
    """Most scratch memory that the engine may use at its largest shapes."""
    islands: Mapping[str, tuple[str, ...]]
    """Parts that stay float32 in an fp16 bundle: name → TensorRT's operations, whose layers must all be float32."""
    float32_products: str | None
    """Which large products stay float32 in an fp16 bundle, and why. None if there are none."""


def describe(source: BundleSource, *, max_stems: int = MAX_STEMS) -> dict[str, EngineDescription]:
    """Describe the engine of every graph of a bundle, by name of the graph.

    Raises:
        EngineRequestError: `max_stems` is out of range.
        EngineSourceError: a graph has an unknown axis.
    """
    if not 1 <= max_stems <= 64:
        raise EngineRequestError(f"--max-stems is {max_stems}; use 1 to 64")
    axes = _axes(source, max_stems)
    return {name: _describe(source, graph, axes) for name, graph in source.graphs.items()}


def _describe(source: BundleSource, graph: GraphSource, axes: Mapping[str, Range]) -> EngineDescription:
    if graph.name in _INDEPENDENT_ROWS:
        rows = axes[_INDEPENDENT_ROWS[graph.name]]
        largest = min(rows.max, SEGMENTS_PER_CALL)
        few = Range(min=1, opt=min(rows.opt, largest), max=largest)
        axes = {**axes, _INDEPENDENT_ROWS[graph.name]: few}
    return EngineDescription(
        graph=graph.name,
        precision=source.precision,
        inputs=tuple(_profile(port, axes) for port in graph.inputs),
        workspace_bytes=WORKSPACE_BYTES,
        islands=_ISLANDS.get(graph.name, {}),
        float32_products=_FLOAT32_PRODUCTS.get(graph.name) if source.precision == "fp16" else None,
    )


def _profile(port: Port, axes: Mapping[str, Range]) -> InputProfile:
    return InputProfile(name=port.name, dtype=port.dtype, ranges=tuple(_range(n, axes) for n in port.shape))


def _range(size: Size, axes: Mapping[str, Range]) -> Range:
    factor, axis = split_axis(size)
    if not axis:
        return Range(min=factor, opt=factor, max=factor)
    return axes[axis].times(factor)


def _axes(source: BundleSource, max_stems: int) -> dict[str, Range]:
    rules = source.sequence
    durations = (rules.min_duration_s, source.default_duration_s, rules.max_duration_s)
    low, mid, high = (rules.lengths(duration_s).axes for duration_s in durations)
    lengths = {axis: Range(min=low[axis], opt=mid[axis], max=high[axis]) for axis in low}
    return {
        "prompts": Range(min=1, opt=1, max=1),  # the runtime runs prompts one by one
        "tokens": Range(min=1, opt=min(OPTIMAL_TOKENS, source.max_tokens), max=source.max_tokens),
        "stems": Range(min=1, opt=1, max=max_stems),
        **lengths,
    }
