"""Conditional flow matching: the straight path from noise to data, and the solvers that follow a learned flow.

x_t = (1 - t) x_0 + t x_1 with noise x_0 and data x_1; the flow's target is x_1 - x_0  (arXiv 2210.02747, with
sigma_min = 0). A solver integrates dx/dt = v(t, x) from t = 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

Flow = Callable[[float, Tensor], Tensor]


def path(noise: Tensor, data: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the point x_t and the target velocity, both shaped like `data`; `t` (B,) holds one time per item."""
    t = t.reshape(-1, *[1] * (data.dim() - 1))
    return torch.lerp(noise, data, t), data - noise


def euler(flow: Flow, noise: Tensor, *, steps: int = 25) -> Tensor:
    """Integrates the flow with `steps` equal Euler steps from t = 0: x += v(i / steps, x) / steps."""
    x = noise
    for i in range(steps):
        x = x + flow(i / steps, x) / steps
    return x


def ab2(flow: Flow, noise: Tensor, *, steps: int = 25) -> Tensor:
    """Integrates the flow with `steps` equal steps of the two-step Adams-Bashforth method; the first is Euler's.

    x += (1.5 v_i - 0.5 v_{i-1}) / steps with v_i = v(i / steps, x): second order, one evaluation of the flow a step.
    """
    x, last = noise, None
    for i in range(steps):
        v = flow(i / steps, x)
        x = x + (v if last is None else 1.5 * v - 0.5 * last) / steps
        last = v
    return x


def adaptive(flow: Flow, noise: Tensor, *, rtol: float = 1e-5, atol: float = 1e-5) -> Tensor:
    """Integrates the flow with fifth-order Dormand-Prince and adaptive steps (torchdiffeq's `dopri5`)."""
    times = torch.tensor([0.0, 1.0], dtype=noise.dtype, device=noise.device)
    y: Tensor = odeint(lambda t, x: flow(float(t), x), noise, times, rtol=rtol, atol=atol, method="dopri5")[-1]
    return y
