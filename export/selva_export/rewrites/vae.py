"""The VAE decoder's deployment form.

Every convolution has its effective weight, computed once, with the gain and the weights of residual sums folded in. A
runtime that folds them itself may keep both weights in memory. The doubled rate is a stack, which exports to a reshape.
Shapes: B batch, C channels, T frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_export.rewrites.layers import attend, replace
from selva_ref.model.vae import ADDED, KEPT, SILU_SCALE, Attention, Decoder, MPConv1d, ResidualBlock, Upsample, unit


def rewrite(root: nn.Module) -> None:
    """Rewrites every VAE decoder below `root`; the encoder is not exported."""
    replace(root, Decoder, GraphDecoder)


class FoldedConv1d(nn.Module):
    """`MPConv1d` with a fixed effective weight."""

    @torch.no_grad()
    def __init__(self, plain: MPConv1d, gain: Tensor | float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(plain.effective_weight(gain))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, padding=self.weight.shape[-1] // 2)


class GraphResidualBlock(nn.Module):
    """`ResidualBlock` with the scales folded into the convolutions."""

    def __init__(self, plain: ResidualBlock) -> None:
        super().__init__()
        self.conv1 = FoldedConv1d(plain.conv1, SILU_SCALE)
        self.conv2 = FoldedConv1d(plain.conv2, SILU_SCALE * ADDED)
        self.nin_shortcut = FoldedConv1d(plain.nin_shortcut, KEPT) if hasattr(plain, "nin_shortcut") else None

    def forward(self, x: Tensor) -> Tensor:
        x = unit(x, 1)
        h = self.conv2(F.silu(self.conv1(F.silu(x))))
        y: Tensor = (KEPT * x if self.nin_shortcut is None else self.nin_shortcut(x)) + h
        return y


class GraphAttention(nn.Module):
    """`Attention` with the weight of the residual sum folded into the projection."""

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        self.qkv = FoldedConv1d(plain.qkv)
        self.proj_out = FoldedConv1d(plain.proj_out, ADDED)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (unit(part, -1) for part in rearrange(self.qkv(x), "b (c three) t -> three b 1 t c", three=3))
        out = attend(q * q.shape[-1] ** -0.5, k, v)
        y: Tensor = KEPT * x + self.proj_out(rearrange(out, "b 1 t c -> b c t"))
        return y


class GraphUpsample(nn.Module):
    """`Upsample` as a stack."""

    def __init__(self, plain: Upsample) -> None:
        super().__init__()
        self.conv = FoldedConv1d(plain.conv)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.stack((x, x), dim=-1).flatten(-2))
        return y


class GraphDecoder(nn.Module):
    """`Decoder` of the forms above."""

    def __init__(self, plain: Decoder) -> None:
        super().__init__()
        self.conv_in = FoldedConv1d(plain.conv_in)
        self.mid, self.up = plain.mid, plain.up
        self.conv_out = FoldedConv1d(plain.conv_out, (plain.learnable_gain + 1) * SILU_SCALE)
        for part in (self.mid, self.up):
            replace(part, ResidualBlock, GraphResidualBlock)
            replace(part, Attention, GraphAttention)
            replace(part, Upsample, GraphUpsample)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        y: Tensor = self.conv_out(F.silu(x))
        return y
