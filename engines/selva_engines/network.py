"""Count the layers of a parsed TensorRT network by operation and precision.

Networks are strongly typed, so a layer runs in the precision that is counted here, however layers are fused later. The
counts are the same with and without a GPU. Operations have TensorRT's names; a unary layer's also has its function.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM")
LARGE_ELEMENTS = 2**12
"""A product is large if its weight has at least this many elements."""
_PASSED_THROUGH = ("SHUFFLE", "CAST", "SQUEEZE", "UNSQUEEZE", "SLICE", "IDENTITY")


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product or convolution."""

    name: str
    operation: str
    dtype: str
    """Type of the multiplication, such as "float16"."""
    weight: str | None
    """Name of the weight. None if both sides are activations, as in attention."""
    weight_elements: int

    @property
    def is_large(self) -> bool:
        """Whether the speed of the product matters: it has a large weight or is part of attention."""
        return self.weight is None or self.weight_elements >= LARGE_ELEMENTS


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """Counts of a parsed graph."""

    layers: int
    operations: dict[str, dict[str, int]]
    """Operation → type of the first input (for constants, of the output) → number of layers."""
    products: tuple[Product, ...]

    def large_products(self, dtype: str) -> tuple[Product, ...]:
        """Return the large products in one precision."""
        return tuple(p for p in self.products if p.is_large and p.dtype == dtype)

    def precisions(self, operations: tuple[str, ...]) -> dict[str, int]:
        """Count the layers of these operations by precision."""
        total: Counter[str] = Counter()
        for operation in operations:
            total.update(self.operations.get(operation, {}))
        return dict(total)


def summarise(api: Any, network: Any) -> NetworkSummary:
    """Count the layers of a parsed `INetworkDefinition`."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    operations: dict[str, Counter[str]] = {}
    for layer in layers:
        operations.setdefault(_operation(api, layer), Counter())[_dtype(api, layer)] += 1
    products = tuple(_product(api, layer, makers) for layer in layers if layer.type.name in PRODUCTS)
    counts = {operation: dict(sorted(found.items())) for operation, found in sorted(operations.items())}
    return NetworkSummary(layers=len(layers), operations=counts, products=products)


def _operation(api: Any, layer: Any) -> str:
    name = str(layer.type.name)
    if name == "UNARY":
        layer.__class__ = api.IUnaryLayer
        return f"UNARY.{layer.op.name}"
    return name


def _dtype(api: Any, layer: Any) -> str:
    tensor = layer.get_input(0) if layer.num_inputs else None
    return type_name((tensor if tensor is not None else layer.get_output(0)).dtype.name)


def _product(api: Any, layer: Any, makers: dict[str, Any]) -> Product:
    weight, elements = _weight(api, layer, makers)
    return Product(
        name=str(layer.name),
        operation=str(layer.type.name),
        dtype=_dtype(api, layer),
        weight=weight,
        weight_elements=elements,
    )


def _weight(api: Any, layer: Any, makers: dict[str, Any]) -> tuple[str | None, int]:
    if layer.type.name in ("CONVOLUTION", "DECONVOLUTION"):
        layer.__class__ = api.IConvolutionLayer if layer.type.name == "CONVOLUTION" else api.IDeconvolutionLayer
        if layer.kernel.size:
            return str(layer.name), int(layer.kernel.size)
    for k in range(layer.num_inputs):
        constant = _constant(layer.get_input(k), makers)
        if constant is not None:
            return str(constant.name), math.prod(constant.get_output(0).shape)
    return None, 0


def _constant(tensor: Any, makers: dict[str, Any]) -> Any:
    """Return the constant layer behind a tensor and its casts and rearrangements. None for an activation."""
    while tensor is not None and tensor.name in makers:
        layer = makers[tensor.name]
        if layer.type.name == "CONSTANT":
            return layer
        if layer.type.name not in _PASSED_THROUGH:
            return None
        tensor = layer.get_input(0)
    return None


def type_name(name: str) -> str:
    """Convert TensorRT's name of a type ("HALF", "Half") to NumPy's."""
    known = {"half": "float16", "float": "float32", "fp16": "float16", "fp32": "float32", "bf16": "bfloat16"}
    return known.get(name.lower(), name.lower())
