"""The generator's deployment form.

- q, k and v are contiguous in the stacked projection, and rotated pairs lie as two halves: slices instead of strided
  gathers. The scale of the scores is part of the query norm.
- A step computes modulations once for each distinct row instead of once for each latent vector. Latent vectors with the
  same sync features share a row.

Shapes: B batch, N tokens, T latent length, R rows, D width, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_export.graphs import AverageStep, GuidedStep, Step
from selva_export.rewrites.layers import attend, deinterleave, replace
from selva_ref.model.generator import Conditions
from selva_ref.model.generator_blocks import FusedBlock, JointBlock, SelfAttention


def rewrite(root: nn.Module) -> None:
    """Rewrites every step of a generator below `root`."""
    replace(root, GuidedStep, RowGuidedStep)
    replace(root, AverageStep, RowAverageStep)


class GraphSelfAttention(nn.Module):
    """q, k and v of one stream. Queries and keys are permuted the same way, so their products do not change."""

    @torch.no_grad()
    def __init__(self, plain: SelfAttention) -> None:
        super().__init__()
        self.heads = plain.heads
        self.qkv, self.q_norm, self.k_norm = plain.qkv, plain.q_norm, plain.k_norm
        deinterleave(self.qkv, self.heads, 3)
        for rows in (self.qkv.weight, self.qkv.bias):
            turned = rows[: 2 * rows.shape[0] // 3]
            turned.copy_(rearrange(turned, "(qh d two) ... -> (qh two d) ...", qh=2 * self.heads, two=2).clone())
        for norm in (self.q_norm, self.k_norm):
            norm.weight.copy_(rearrange(norm.weight, "(d two) -> (two d)", two=2).clone())
        self.q_norm.weight.mul_(self.q_norm.weight.shape[0] ** -0.5)

    def forward(self, x_BND: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x_BND), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = (rotate_halves(x, rope) for x in (q, k))
        return q, k, v


def rotate_halves(x_BHNd: Tensor, table: Tensor) -> Tensor:
    """Rotates pairs of an element of the first half and one of the second, in float32."""
    cos, sin = table[:, 0], table[:, 1]
    a, b = x_BHNd.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x_BHNd.dtype)


class RowStep(Step):
    """A step with one modulation per row."""

    def __init__(self, plain: Step) -> None:
        super().__init__(plain.generator)
        replace(self.generator, SelfAttention, GraphSelfAttention)

    def velocity(self, latent: Tensor, mods_RD: Tensor, g_mod: Tensor, c: Conditions, rows_BT: Tensor) -> Tensor:
        clip, text = c.clip_f, c.text_f
        for block in self.generator.joint_blocks:
            assert isinstance(block, JointBlock)
            mods = F.embedding(rows_BT, block.latent_block.adaLN_modulation(mods_RD))
            (q, k, v), rest = block.before(latent, clip, text, mods, g_mod, c.latent_rope, c.clip_rope)
            latent, clip, text = block.after(latent, clip, text, _merge_heads(attend(q, k, v)), rest)
        for block in self.generator.fused_blocks:
            assert isinstance(block, FusedBlock)
            mods = F.embedding(rows_BT, block.adaLN_modulation(mods_RD))
            (q, k, v), kept = block.before(latent, mods, c.latent_rope)
            latent = block.after(latent, _merge_heads(attend(q, k, v)), kept)
        v_BTZ: Tensor = self.generator.final_layer(latent, g_mod).float()
        return v_BTZ


class RowGuidedStep(RowStep, GuidedStep):
    """`GuidedStep` with one modulation per row."""


class RowAverageStep(RowStep, AverageStep):
    """`AverageStep` with one modulation per row."""


def _merge_heads(x_BHNd: Tensor) -> Tensor:
    return rearrange(x_BHNd, "b h n d -> b n (h d)")
