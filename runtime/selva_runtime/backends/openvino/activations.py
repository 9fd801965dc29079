"""Keep activations apart from the linear layers before them, so that OpenVINO multiplies by the faster library.

OpenVINO computes linear layers of float32 by MLAS, but a layer with an activation by oneDNN. On a CPU without AVX-512
that costs more than a pass over the layer's outputs. The forms below are the same functions, written so that OpenVINO
fuses them with each other, but not with the layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def separate_activations(openvino: Any, model: Any) -> int:
    """Rewrite each GELU and each gated SiLU of an OpenVINO model, and return how many there were.

    gelu(x) = x/2 + x/2 erf(x/sqrt(2)), and silu(x) y = (x y) sigmoid(x).
    """
    ops, count = openvino.opset13, 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Gelu" and node.get_attributes()["approximation_mode"] == "ERF":
            half, scaled = (ops.multiply(node.input_value(0), _number(node, ops, value)) for value in (0.5, 0.5**0.5))
            node.output(0).replace(ops.add(half, ops.multiply(half, ops.erf(scaled))).output(0))
        elif node.get_type_name() == "Sigmoid" and (found := _gated(node)):
            product, gate = found
            gated = ops.multiply(node.input_value(0), gate)
            product.output(0).replace(ops.multiply(gated, node.output(0)).output(0))
        else:
            continue
        count += 1
    return count


def has_avx512(openvino: Any, core: Any) -> bool:
    """Whether OpenVINO computes with AVX-512 here. It names its instruction set only in the graphs it compiled."""
    ops = openvino.opset13
    values = ops.parameter([1, 16], np.float32)
    model = openvino.Model([ops.softmax(values, 1)], [values])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(model, "CPU", settings)
    return any("avx512" in node.get_rt_info()["primitiveType"].value for node in compiled.get_runtime_model().get_ops())


def _number(node: Any, ops: Any, value: float) -> Any:
    """A constant of the data type that `node` computes in."""
    return ops.constant(np.array(value, node.get_output_element_type(0).to_dtype()))


def _gated(sigmoid: Any) -> tuple[Any, Any] | None:
    """The node that computes silu(x) y, and y, if `sigmoid` is that of such a product."""
    silu = _only_user(sigmoid, "Multiply")
    if silu is None or sigmoid.input_value(0) not in silu.input_values():
        return None
    product = _only_user(silu, "Multiply")
    if product is None:
        return None
    (gate,) = (value for value in product.input_values() if value.get_node() != silu)
    return product, gate


def _only_user(node: Any, kind: str) -> Any:
    """The one node that uses the output of `node`, if it is of this kind."""
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None
