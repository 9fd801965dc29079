"""Layers shared by the networks. Some steps stay in float32, so that a `.half()` model is accurate.

Norm statistics are computed in float32 whatever the data type of the weights. In a float32 model the casts do nothing.
Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOAT32_NAMES = {
    "freqs",
    "latent_mean",
    "latent_std",
    "data_mean",
    "data_std",
    "pixel_mean",
    "pixel_std",
    "alpha",
    "beta",
}
"""Small tensors that stay float32 in every precision: time table, statistics, snake rates."""

RMS_EPS = torch.finfo(torch.float32).eps


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts all weights except `FLOAT32_NAMES` in place and returns the module. Use it instead of `.half()`."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is not None and value.is_floating_point() and name not in FLOAT32_NAMES:
                    value.data = value.data.to(dtype)
    return module


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y / (y.pow(2).mean(-1, keepdim=True) + RMS_EPS).sqrt()
        return (y * self.weight.float()).to(x.dtype)


class Conv1d(nn.Conv1d):
    """Convolution over time of channel-last tokens (B, N, D); the length does not change."""

    def __init__(self, in_width: int, out_width: int, kernel: int, bias: bool = True) -> None:
        super().__init__(in_width, out_width, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        return super().forward(x_BND.transpose(1, 2)).transpose(1, 2)


def gated_width(nominal: int) -> int:
    """Hidden width of the gated MLP: two thirds of the nominal width, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(2 * nominal / 3) / 256)


class GatedMLP(nn.Module):
    """w2(silu(w1 x) * w3 x) without biases, (B, N, D): linear layers if kernel is 0, else convolutions over time."""

    def __init__(self, width: int, nominal_hidden: int, kernel: int = 0) -> None:
        super().__init__()
        hidden = gated_width(nominal_hidden)

        def project(n_in: int, n_out: int) -> nn.Conv1d | nn.Linear:
            if kernel:
                return nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2, bias=False)
            return nn.Linear(n_in, n_out, bias=False)

        self.kernel = kernel
        self.w1 = project(width, hidden)
        self.w2 = project(hidden, width)
        self.w3 = project(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel:  # move channels first once, not at each convolution
            x = x.transpose(1, 2)
        y: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y.transpose(1, 2) if self.kernel else y
