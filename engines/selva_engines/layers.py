"""What TensorRT made of a graph: the layers of a built engine, each one kernel launch or so.

The engine inspector needs a GPU. But a builder that is asked for detailed verbosity logs the same table when it is
done, GPU or not; it is parsed here and kept beside the engine. A library that logs it in another form gives no
layers, and nothing depends on them.
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
"""Layers that launch nothing: events between streams, sizes computed on the host."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What a layer reads or writes; -1 is a dynamic size."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an engine."""

    name: str
    kind: str
    """TensorRT's, such as "gemm", "correlation" (a convolution) or "kgen" (a kernel generated for a fusion)."""
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def launches(self) -> bool:
        """Whether it runs on the GPU."""
        return self.kind not in _BOOKKEEPING

    @property
    def group(self) -> str:
        """Its kind, or "attention" for a whole one, both products and the softmax, in one kernel."""
        return "attention" if "_mha" in self.name else self.kind

    @property
    def precision(self) -> str:
        """Types that it reads and writes, such as "float16" or "float16+float32"; weights and biases included."""
        tensors = (*self.inputs, *self.constants, *self.outputs)
        floats = {t.dtype for t in tensors if "float" in t.dtype and math.prod(t.shape) != 1}
        return "+".join(sorted(floats)) or "integer"

    @property
    def large_weights(self) -> tuple[Tensor, ...]:
        """Constants that are weights of a large product (or tables)."""
        return tuple(t for t in self.constants if math.prod(t.shape) >= LARGE_ELEMENTS)


def parse_layers(messages: Iterable[str]) -> tuple[Layer, ...]:
    """The layers in the builder's log messages."""
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
