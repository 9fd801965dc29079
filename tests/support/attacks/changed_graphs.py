"""Graphs whose outputs differ from the manifest in rank, size or type. Their hashes are in the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from attacks.bundle_edits import HARMLESS, Edit, relist

_TYPES = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.BOOL)


def change_output(bundle: Path, random: Random) -> Edit:
    """Adds a node after one of a graph's outputs."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    name = random.choice((*manifest["graphs"], "decoder", "decoder"))
    file = manifest["graphs"][name]["file"]
    model = onnx.load(bundle / file)
    output = random.choice(model.graph.output)
    rank = len(output.type.tensor_type.shape.dim)
    axis = random.randrange(rank)
    changes = {
        "flat": ("Reshape", [-1], {}),
        "one axis more": ("Unsqueeze", [axis], {}),
        f"a half along {axis}": ("Split", None, {"axis": axis, "num_outputs": 2}),
        f"nothing along {axis}": ("Slice", ([0], [0], [axis]), {}),
        f"double along {axis}": ("Concat", None, {"axis": axis}),
        "another type": ("Cast", None, {"to": random.choice(_TYPES)}),
    }
    change = random.choice(list(changes))
    kind, constants, attributes = changes[change]
    _append(model, output, kind, constants, attributes)
    relist(bundle, file, model.SerializeToString())
    return Edit(what=f"{file}, its hash listed: {output.name} {change} ({kind} {attributes})", allows=HARMLESS)


def _append(
    model: onnx.ModelProto, output: onnx.ValueInfoProto, kind: str, constants: object, attributes: dict[str, Any]
) -> None:
    inner = f"{output.name}_before"
    for node in model.graph.node:
        node.output[:] = [inner if name == output.name else name for name in node.output]
        node.input[:] = [inner if name == output.name else name for name in node.input]
    inputs = [inner, *([inner] if kind == "Concat" else [])]
    for number, values in enumerate(constants if isinstance(constants, tuple) else [constants] if constants else []):
        inputs.append(f"{inner}_{number}")
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), inputs[-1]))
    outputs = [output.name, *([f"{inner}_rest"] if kind == "Split" else [])]
    model.graph.node.append(helper.make_node(kind, inputs, outputs, **attributes))
    element = attributes.get("to", output.type.tensor_type.elem_type)
    output.CopyFrom(helper.make_tensor_value_info(output.name, element, None))
