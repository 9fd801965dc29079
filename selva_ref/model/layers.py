"""Layers shared by the networks, with float32 islands so that a `.half()` model stays accurate.

Norm statistics and softmax are computed in float32 whatever the weights are; in a float32 model the casts vanish.
Shapes: B batch, N tokens, D width, H heads, d head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

FLOAT32_NAMES = {"freqs", "latent_mean", "latent_std", "data_mean", "data_std", "alpha", "beta"}
"""Small tensors that stay float32 in every precision: time table, statistics, rates of the snake."""

RMS_EPS = torch.finfo(torch.float32).eps


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts the weights in place, all but `FLOAT32_NAMES`, and returns the module. Use it instead of `.half()`."""
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
        y = y / (y.pow(2).mean(-1, keepdim=True) + RMS_EPS).sqrt()  # as runtimes know it: they fuse this form
        return (y * self.weight.float()).to(x.dtype)


class Conv1d(nn.Conv1d):
    """Convolution over time of channel-last tokens (B, N, D), length kept."""

    def __init__(self, in_width: int, out_width: int, kernel: int, bias: bool = True) -> None:
        super().__init__(in_width, out_width, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        return super().forward(x_BND.transpose(1, 2)).transpose(1, 2)


def gated_width(nominal: int) -> int:
    """Hidden width of the gated MLP: two thirds of the nominal one, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(2 * nominal / 3) / 256)


class GatedMLP(nn.Module):
    """w2(silu(w1 x) * w3 x) without biases, (B, N, D): linear for kernel 0, else convolutions over time."""

    def __init__(self, width: int, nominal_hidden: int, kernel: int = 0) -> None:
        super().__init__()
        hidden = gated_width(nominal_hidden)

        def project(n_in: int, n_out: int) -> nn.Module:
            if kernel:
                return nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2, bias=False)
            return nn.Linear(n_in, n_out, bias=False)

        self.kernel = kernel
        self.w1 = project(width, hidden)
        self.w2 = project(hidden, width)
        self.w3 = project(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel:  # channels first once, not at each convolution
            x = x.transpose(1, 2)
        y = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y.transpose(1, 2) if self.kernel else y


@torch.no_grad()
def deinterleave(linear: nn.Linear, heads: int, parts: int) -> None:
    """Reorders outputs (head, d, part) of a stacked projection to (part, head, d), in place."""
    for rows in (linear.weight, linear.bias):
        rows.copy_(rearrange(rows, "(h d part) ... -> (part h d) ...", h=heads, part=parts).clone())


def attend(q_BHNd: Tensor, k_BHMd: Tensor, v_BHMd: Tensor, mask: Tensor | None = None, *, scale: float) -> Tensor:
    """Scaled dot-product attention, (B, H, N, d); `mask` is true where a key may be seen.

    Under export it is the MatMul-Softmax-MatMul chain that inference engines fuse, the softmax in float32.
    """
    if not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q_BHNd, k_BHMd, v_BHMd, attn_mask=mask, scale=scale)
    scores = (q_BHNd if scale == 1.0 else q_BHNd * scale) @ k_BHMd.transpose(-1, -2)
    scores = scores.float()
    if mask is not None:
        scores = torch.where(mask, scores, torch.full((), -1e9))
    return scores.softmax(-1).to(v_BHMd.dtype) @ v_BHMd
