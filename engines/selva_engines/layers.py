"""The layers of a built engine. Each is about one kernel launch.

The engine inspector needs a GPU. But a builder with detailed verbosity logs the same table at the end, with or without
a GPU. It is parsed here and stored beside the engine. If a library logs the table in another form, there are no
layers. Nothing depends on them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from selva_engines.network import LARGE_ELEMENTS, type_name

_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>.*?), Constants: (?P<constants>.*?), "
    r"Outputs: (?P<outputs>.*?), TacticName: "
)
_TENSOR = re.compile(r"Dimensions: \[(?P<dimensions>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_BOOKKEEPING = frozenset({"signal", "wait", "shape_call"})
"""Layers that launch no kernel: events between streams, sizes computed on the host."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input, a constant or an output of a layer. -1 is a dynamic size."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an engine."""

    name: str
    kind: str
    """TensorRT's kind, such as "gemm", "correlation" (a convolution) or "kgen" (a kernel generated for a fusion)."""
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def launches(self) -> bool:
        """Whether the layer runs on the GPU."""
        return self.kind not in _BOOKKEEPING

    @property
    def group(self) -> str:
        """The kind, or "attention" if one kernel computes a whole attention: both products and the softmax."""
        return "attention" if "_mha" in self.name else self.kind

    @property
    def precision(self) -> str:
        """Types that the layer reads and writes, such as "float16" or "float16+float32", with weights and biases."""
        tensors = (*self.inputs, *self.constants, *self.outputs)
        floats = {t.dtype for t in tensors if "float" in t.dtype and math.prod(t.shape) != 1}
        return "+".join(sorted(floats)) or "integer"

    @property
    def large_weights(self) -> tuple[Tensor, ...]:
        """Constants that are weights of a large product, or large tables."""
        return tuple(t for t in self.constants if math.prod(t.shape) >= LARGE_ELEMENTS)


def parse_layers(messages: Iterable[str]) -> tuple[Layer, ...]:
    """Parse the layers in the builder's log messages."""
    lines = (line for message in messages for line in message.splitlines())
    return tuple(_layer(match) for match in map(_LAYER.match, lines) if match)


def _layer(match: re.Match[str]) -> Layer:
    return Layer(
        name=match["name"],
        kind=match["kind"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"]),
        outputs=_tensors(match["outputs"]),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(dtype=type_name(match["dtype"]), shape=_shape(match["dimensions"])) for match in _TENSOR.finditer(text)
    )


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n.strip())
