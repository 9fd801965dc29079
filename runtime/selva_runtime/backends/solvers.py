"""The solvers of the flow, and what they do to its state between two runs of its graph, in NumPy.

The graph makes an Euler step. Holding known latents, and correcting the step to second order, need its input and
output alone. The GPU path does the same on the device (`gpu/kernels.cu`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
EULER, AB2 = SOLVERS = ("euler", "ab2")
"""Euler's method, and the two-step Adams-Bashforth method, which is of second order and costs no more."""
AB2_GAIN = 0.5
"""x_{n+1} = x_n + dt (1.5 v_n - 0.5 v_{n-1}) is the Euler step plus this share of the change of dt v."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Latents that are known at every step: before step i the state becomes (1 - weights) x + weights * values[i]."""

    values: Float32
    """(steps, B, T, Z), finite where `weights` > 0."""
    weights: Float32
    """(T,), from 0 (free) to 1 (known)."""


def blend(state: Float32, known: Float32, weights: Float32) -> Float32:
    """Return (1 - weights) state + weights known for a state (B, T, Z), exactly `state` where `weights` (T,) is 0."""
    rows = weights > 0
    w = weights[rows, None]
    blended = state.copy()
    blended[:, rows] = (1 - w) * state[:, rows] + w * known[:, rows]
    return blended


def advance(state: Float32, euler: Float32, last: Float32 | None, gain: float = AB2_GAIN) -> tuple[Float32, Float32]:
    """Return the state after an AB2 step, and the change dt v of this step. The first step, without `last`, is Euler's.

    `euler` is the state after an Euler step from `state`, and `last` the change of the step before.
    """
    change = euler - state
    return (euler if last is None else euler + np.float32(gain) * (change - last)), change
