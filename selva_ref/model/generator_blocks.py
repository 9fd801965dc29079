"""Blocks of the generator: modulated attention over one stream (fused) or three (joint).

Shapes: B batch, N tokens, D width, H heads, d head width. Modulations come from one activated vector. The latent stream
has one vector per token, because it also carries the sync features; the other streams share one for all tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_ref.model.layers import Conv1d, GatedMLP, RMSNorm, attend, deinterleave


def rotation_table(positions_N: Tensor, head_width: int) -> Tensor:
    """RoPE table (N, 2, d/2), float32: cosines and sines of pos * 10000^(-2i/d)  (arXiv 2104.09864)."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions_N.device) / head_width
    angles = positions_N[:, None].float() * (1.0 / 10000.0**exponent)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def rotate(x_BHNd: Tensor, table: Tensor, *, halves: bool = False) -> Tensor:
    """Rotates pairs: (a, b) → (a cos - b sin, a sin + b cos), in float32.

    Pairs are adjacent elements, or with `halves` an element of the first half and one of the second.
    """
    cos, sin = table[:, 0], table[:, 1]
    x = x_BHNd.float()
    a, b = x.chunk(2, dim=-1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = (a * cos - b * sin, a * sin + b * cos)
    return (torch.cat(turned, dim=-1) if halves else torch.stack(turned, dim=-1).flatten(-2)).to(x_BHNd.dtype)


class TimeEmbedding(nn.Module):
    """[cos(t f), sin(t f)] in float32, then Linear → SiLU → Linear.

    The table is computed in torch float32 and stored as a constant. In v2 the phases reach 9,600 rad, where even an
    algebraically equal table gives different values.
    """

    freqs: Tensor

    def __init__(self, width: int, table_width: int, rate: float) -> None:
        super().__init__()
        exponent = torch.arange(0, table_width, 2, dtype=torch.float32) / table_width
        self.register_buffer("freqs", 1.0 / (10000.0**exponent) * rate, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(table_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Times (1,) or (B,) → (1 or B, D)."""
        phase = t.float()[:, None] * self.freqs
        return self.mlp(torch.cat((phase.cos(), phase.sin()), dim=-1).to(self.mlp[0].weight.dtype))


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without learned scale and bias, computed in float32."""
    return F.layer_norm(x.float(), (x.shape[-1],)).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift."""
    return plain_norm(x) * (1 + scale) + shift


def adaln(width: int, count: int) -> nn.Sequential:
    """The layer that makes `count` modulations. Index 0 is the (shared) SiLU, which is applied outside, once."""
    return nn.Sequential(nn.Identity(), nn.Linear(width, count * width))


class SelfAttention(nn.Module):
    """Makes q, k and v of one stream. Until baked, the q/k/v index is innermost in the 3D outputs of `qkv`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.baked = False
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    @torch.no_grad()
    def bake(self) -> None:
        """Rewrites the weights for inference: q, k and v contiguous, rotated pairs as halves, the scale in the query
        norm.

        Queries and keys are permuted the same way, so their products do not change.
        """
        deinterleave(self.qkv, self.heads, 3)
        for rows in (self.qkv.weight, self.qkv.bias):
            turned = rows[: 2 * rows.shape[0] // 3]
            turned.copy_(rearrange(turned, "(qh d two) ... -> (qh two d) ...", qh=2 * self.heads, two=2).clone())
        for norm in (self.q_norm, self.k_norm):
            norm.weight.copy_(rearrange(norm.weight, "(d two) -> (two d)", two=2).clone())
        self.q_norm.weight.mul_(self.scale)
        self.scale, self.baked = 1.0, True

    def forward(self, x_BND: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        layout = "(three h d)" if self.baked else "(h d three)"
        q, k, v = rearrange(self.qkv(x_BND), f"b n {layout} -> three b h n d", three=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = (rotate(x, rope, halves=self.baked) for x in (q, k))
        return q, k, v


class StreamBlock(nn.Module):
    """One stream of a joint block. A fused block has only one. `kernel` 0 means linear layers (text)."""

    def __init__(self, width: int, heads: int, kernel: int, only_qkv: bool = False) -> None:
        super().__init__()
        self.only_qkv = only_qkv
        self.attn = SelfAttention(width, heads)
        self.adaLN_modulation = adaln(width, 2 if only_qkv else 6)
        if not only_qkv:
            self.linear1 = Conv1d(width, width, kernel) if kernel else nn.Linear(width, width)
            self.ffn = GatedMLP(width, 4 * width, kernel=kernel)

    def before(
        self, x: Tensor, mod: Tensor, rope: Tensor | None, rows_BN: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns (q, k, v) and the four modulations that `after` needs.

        Without `rows_BN`, `mod` is (B, N or 1, D). With it, `mod` is (R, D) and `rows_BN` gives the row for each token.
        """
        modulations = self.adaLN_modulation(mod)
        if rows_BN is not None:
            modulations = F.embedding(rows_BN, modulations)
        shift, scale, *rest = modulations.chunk(2 if self.only_qkv else 6, dim=-1)
        return self.attn(modulate(x, shift, scale), rope), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        """Adds the attention output and the feed-forward output to the residual stream."""
        gate, shift2, scale2, gate2 = rest
        x = x + gate * self.linear1(attended)
        return x + gate2 * self.ffn(modulate(x, shift2, scale2))


class FusedBlock(StreamBlock):
    """Attention over the latent stream only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, kernel=3)

    def forward(self, x: Tensor, mod: Tensor, rope: Tensor, rows_BN: Tensor | None = None) -> Tensor:
        (q, k, v), rest = self.before(x, mod, rope, rows_BN)
        out = attend(q, k, v, scale=self.attn.scale)
        return self.after(x, rearrange(out, "b h n d -> b n (h d)"), rest)


class JointBlock(nn.Module):
    """Joint attention over latent, clip and text. In the last block clip and text only provide keys and values."""

    def __init__(self, width: int, heads: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.latent_block = StreamBlock(width, heads, kernel=3)
        self.clip_block = StreamBlock(width, heads, kernel=3, only_qkv=last)
        self.text_block = StreamBlock(width, heads, kernel=0, only_qkv=last)

    def forward(
        self,
        latent: Tensor,
        clip: Tensor,
        text: Tensor,
        latent_mod: Tensor,
        g_mod: Tensor,
        rope: Tensor,
        clip_rope: Tensor,
        rows_BN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (q_x, k_x, v_x), rest_x = self.latent_block.before(latent, latent_mod, rope, rows_BN)
        (q_c, k_c, v_c), rest_c = self.clip_block.before(clip, g_mod, clip_rope)
        (q_t, k_t, v_t), rest_t = self.text_block.before(text, g_mod, None)
        k, v = torch.cat((k_x, k_c, k_t), dim=2), torch.cat((v_x, v_c, v_t), dim=2)
        q = q_x if self.last else torch.cat((q_x, q_c, q_t), dim=2)
        out = attend(q, k, v, scale=self.latent_block.attn.scale)
        out = rearrange(out, "b h n d -> b n (h d)")
        n, m = latent.shape[1], clip.shape[1]
        latent = self.latent_block.after(latent, out[:, :n], rest_x)
        if self.last:
            return latent, clip, text
        clip = self.clip_block.after(clip, out[:, n : n + m], rest_c)
        return latent, clip, self.text_block.after(text, out[:, n + m :], rest_t)


class FinalLayer(nn.Module):
    """Layer norm, shift and scale from the global condition, then a convolution to the latent width."""

    def __init__(self, width: int, latent_width: int) -> None:
        super().__init__()
        self.adaLN_modulation = adaln(width, 2)
        self.conv = Conv1d(width, latent_width, 7)

    def forward(self, x: Tensor, g_mod: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(g_mod).chunk(2, dim=-1)
        return self.conv(modulate(x, shift, scale))
