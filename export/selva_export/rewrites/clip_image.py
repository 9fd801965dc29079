"""The image tower's deployment form: the scale of the scores is part of the query rows, and the softmax is float32.

Shapes: B frames, N tokens, D width, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_export.rewrites.layers import attend, replace
from selva_ref.model.clip_image import Attention


def rewrite(root: nn.Module) -> None:
    """Rewrites every layer of an image tower below `root`."""
    replace(root, Attention, GraphAttention)


class GraphAttention(nn.Module):
    """`Attention` with scaled query rows."""

    @torch.no_grad()
    def __init__(self, plain: Attention) -> None:
        super().__init__()
        self.heads = plain.heads
        self.in_proj_weight, self.in_proj_bias, self.out_proj = plain.in_proj_weight, plain.in_proj_bias, plain.out_proj
        width = self.out_proj.in_features
        for rows in (self.in_proj_weight, self.in_proj_bias):
            rows[:width].mul_((width // self.heads) ** -0.5)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv = F.linear(x_BND, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        y: Tensor = self.out_proj(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))
        return y
