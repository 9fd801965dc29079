"""Compute linear layers in int8: the weights per output, once; the inputs per token, while the graph runs.

OpenVINO does the latter by itself for a layer whose weights are int8 numbers times a scale ("dynamic quantization").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LEAST_WEIGHTS = 1 << 12
"""Smaller layers stay in float32: they take no time."""
GROUP = 64
"""Inputs that share a scale. A layer whose inputs it does not divide stays in float32: none at official
sizes, but 45 of 54 in the demo."""
SETTINGS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP)}


def quantize_layers(openvino: Any, model: Any) -> int:
    """Quantize the weights of the large linear layers of an OpenVINO model, and return how many layers there were."""
    ops, count = openvino.opset13, 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weights = _weights(node)
        if weights is None or weights.size < LEAST_WEIGHTS or weights.shape[1] % GROUP:
            continue
        scale = np.maximum(abs(weights).max(1, keepdims=True), 1e-12) / 127
        dtype = node.get_output_element_type(0).to_dtype()  # float16 in a bundle of that precision
        whole = ops.convert(ops.constant(np.round(weights / scale).astype(np.int8)), dtype)
        product = ops.multiply(whole, ops.constant(scale.astype(dtype)))
        transposed = node.get_attributes()["transpose_a"]
        node.output(0).replace(ops.matmul(node.input_value(0), product, transposed, True).output(0))
        count += 1
    return count


def _weights(product: Any) -> npt.NDArray[np.float32] | None:
    """(outputs, inputs) of a linear layer; None if the product is another one."""
    node = product.input_value(1).get_node()
    if node.get_type_name() == "Convert":  # weights that are stored as float16
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or len(node.shape) != 2:
        return None
    values: npt.NDArray[np.float32] = node.data.astype(np.float32)
    return values if product.get_attributes()["transpose_b"] else np.ascontiguousarray(values.T)
