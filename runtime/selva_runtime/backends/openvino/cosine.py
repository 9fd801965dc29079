"""Replace cosines with polynomials. OpenVINO has no vector code for `Cos`, which took a third to half of the vocoder.

The vocoder's activations take a cosine of every sample 109 times. OpenVINO fuses a polynomial with the nodes around it
into one pass. This is used for the vocoder only. The range reduction below adds an error as large as float32's own
rounding of the argument. That is too much for a time embedding, whose arguments reach thousands of radians.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SINE = (4.442883014678955, -7.308241367340088, 3.6062889099121094, -0.8457635641098022, 0.10920574516057968)
"""Minimax coefficients of sqrt(2) sin(pi r) = r (c0 + c1 r^2 + c2 r^4 + ...) for |r| <= 1/2, error at most 5e-9."""


def replace_cosines(openvino: Any, model: Any) -> int:
    """Rewrite every cosine of an OpenVINO model, and return how many there were.

    cos(y) = 1 - (sqrt(2) sin(pi r))^2, where r is y / 2pi minus the nearest whole number.
    """
    cosines = [node for node in model.get_ops() if node.get_type_name() == "Cos"]
    for node in cosines:
        node.output(0).replace(_cosine(openvino.opset13, node.input_value(0)).output(0))
    return len(cosines)


def _cosine(ops: Any, angle: Any) -> Any:
    def number(value: float) -> Any:
        return ops.constant(np.array(value, np.float32))

    turns = ops.multiply(angle, number(0.5 / math.pi))
    r = ops.subtract(turns, ops.round(turns, "half_to_even"))
    square = ops.multiply(r, r)
    sine = number(SINE[-1])
    for coefficient in reversed(SINE[:-1]):
        sine = ops.add(ops.multiply(sine, square), number(coefficient))
    sine = ops.multiply(sine, r)
    return ops.subtract(number(1.0), ops.multiply(sine, sine))
