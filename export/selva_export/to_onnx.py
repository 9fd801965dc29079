"""One module → one ONNX file, using torch's dynamo exporter, with named dynamic axes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch import nn
from torch.export import Dim

from selva_bundle.ports import split_axis
from selva_export.signatures import Signature

OPSET = 20
EXTERNAL_DATA_BYTES = 64 * 2**20
"""A graph with more bytes of weights keeps them in a separate file, `NAME.onnx.data`; protobuf is limited to 2 GB."""

HALF_MIN_ELEMENTS = 1024
"""`half_weights` stores tensors with this many elements or more in float16; small ones are scales, norms, tables."""

TRACE_AXES = {"prompts": 2, "tokens": 9, "stems": 2, "segments": 3, "latent": 39, "clip": 11}
"""Axis sizes for tracing. None is one, so that no axis is mistaken for a constant."""


def export_graph(
    module: nn.Module,
    signature: Signature,
    feeds: Mapping[str, np.ndarray],
    path: Path,
    *,
    half_weights: bool = False,
) -> list[Path]:
    """Writes `path`, and `path.data` if the weights are large; returns the files written.

    Args:
        feeds: example inputs at `TRACE_AXES`.
        half_weights: a float32 graph stores its weights as float16.
    """
    args = tuple(torch.from_numpy(feeds[port.name]) for port in signature.inputs)
    program = _trace(module, signature, args)
    assert program is not None
    _simplify(program.model)
    for value, port in zip(program.model.graph.outputs, signature.outputs, strict=True):
        assert value.name == port.name
        value.shape = onnx_ir.Shape(port.shape)
    if half_weights:
        _halve_weights(program.model.graph)
    weights = [value.const_value for value in program.model.graph.initializers.values()]
    large = sum(int(weight.nbytes) for weight in weights if weight is not None) > EXTERNAL_DATA_BYTES
    program.save(path, external_data=large)
    return [path, path.with_name(f"{path.name}.data")] if large else [path]


def _trace(module: nn.Module, signature: Signature, args: tuple[torch.Tensor, ...]) -> torch.onnx.ONNXProgram | None:
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it lists missing torchvision operators
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            return torch.onnx.export(
                module.eval(),
                args,
                input_names=[port.name for port in signature.inputs],
                output_names=[port.name for port in signature.outputs],
                dynamic_shapes=_dynamic_shapes(signature),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    finally:
        registration.setLevel(level)


def _dynamic_shapes(signature: Signature) -> tuple[dict[int, object], ...]:
    dims: dict[str, Dim] = {}

    def axis(n: int | str) -> object:
        if isinstance(n, int):
            return Dim.STATIC
        factor, name = split_axis(n)
        dim = dims.setdefault(name, Dim(name, min=1, max=65536))
        return factor * dim if factor > 1 else dim

    return tuple({i: axis(n) for i, n in enumerate(port.shape)} for port in signature.inputs)


def _simplify(model: onnx_ir.Model) -> None:
    """Folds constants, shares equal ones, and drops dead nodes and the tracer's notes (which contain source paths).

    The exporter's own `optimize=True` also matches rewrite rules against every node, twice. That takes a minute for the
    decoder, for a handful of fusions that the runtimes do themselves.
    """
    optimizer.fold_constants(model, input_size_limit=1024)  # larger ones are weights: their casts stay in the graph
    for step in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        step(model)


def _halve_weights(graph: onnx_ir.Graph) -> None:
    """Stores large float32 constants as float16 and casts them back at each use; runtimes fold the casts on loading."""
    for whole, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < HALF_MIN_ELEMENTS:
            continue
        numbers = tensor.numpy()
        if np.abs(numbers).max() > np.finfo(np.float16).max:  # a mask, not a weight
            continue
        name = f"{whole}.half"
        stored = onnx_ir.tensor(numbers.astype(np.float16), name=name)
        half = onnx_ir.Value(name=name, const_value=stored, shape=value.shape, type=onnx_ir.TensorType(stored.dtype))
        attribute = onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT.value)
        cast = onnx_ir.Node("", "Cast", [half], [attribute], name=f"{whole}.whole")
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        onnx_ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        graph.insert_before(graph[0], cast)
        del graph.initializers[whole]
        graph.initializers[name] = half
