"""Blocks of the generator: modulated attention over one stream (fused) or three (joint).

Shapes: B batch, N tokens, D width, H heads, d head width. Modulations come from one activated vector. The latent stream
has one vector per token, because it also carries the sync features; the other streams share one for all tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_ref.model.layers import Conv1d, GatedMLP, RMSNorm

Tensors = tuple[Tensor, ...]


def rotation_table(positions_N: Tensor, head_width: int) -> Tensor:
    """RoPE table (N, 2, d/2), float32: cosines and sines of pos * 10000^(-2i/d)  (arXiv 2104.09864)."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions_N.device) / head_width
    angles = positions_N[:, None].float() * (1.0 / 10000.0**exponent)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def rotate(x_BHNd: Tensor, table: Tensor) -> Tensor:
    """Rotates adjacent pairs: (a, b) → (a cos - b sin, a sin + b cos), in float32."""
    cos, sin = table[:, 0], table[:, 1]
    a, b = x_BHNd.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x_BHNd.dtype)


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
        y: Tensor = self.mlp(torch.cat((phase.cos(), phase.sin()), dim=-1).to(next(self.mlp.parameters()).dtype))
        return y


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
    """Makes q, k and v of one stream. The q/k/v index is innermost in the 3D outputs of `qkv`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    def forward(self, x_BND: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x_BND), "b n (h d three) -> three b h n d", three=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = (rotate(x, rope) for x in (q, k))
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

    def before(self, x: Tensor, modulations: Tensor, rope: Tensor | None) -> tuple[Tensors, Tensors]:
        """Returns (q, k, v) and the four modulations that `after` needs; `modulations` is (B, N or 1, 2D or 6D)."""
        shift, scale, *rest = modulations.chunk(2 if self.only_qkv else 6, dim=-1)
        return self.attn(modulate(x, shift, scale), rope), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        """Adds the attention output and the feed-forward output to the residual stream."""
        gate, shift2, scale2, gate2 = rest
        x = x + gate * self.linear1(attended)
        y: Tensor = x + gate2 * self.ffn(modulate(x, shift2, scale2))
        return y


class FusedBlock(StreamBlock):
    """Attention over the latent stream only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, kernel=3)

    def forward(self, x: Tensor, mod: Tensor, rope: Tensor) -> Tensor:
        (q, k, v), rest = self.before(x, self.adaLN_modulation(mod), rope)
        out = F.scaled_dot_product_attention(q, k, v)
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        modulations = self.latent_block.adaLN_modulation(latent_mod)
        (q, k, v), rest = self.before(latent, clip, text, modulations, g_mod, rope, clip_rope)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.after(latent, clip, text, rearrange(out, "b h n d -> b n (h d)"), rest)

    def before(
        self,
        latent: Tensor,
        clip: Tensor,
        text: Tensor,
        latent_modulations: Tensor,
        g_mod: Tensor,
        rope: Tensor,
        clip_rope: Tensor,
    ) -> tuple[Tensors, tuple[Tensors, Tensors, Tensors]]:
        """Returns (q, k, v) of the streams in a row, and the modulations that `after` needs."""
        (q_x, k_x, v_x), rest_x = self.latent_block.before(latent, latent_modulations, rope)
        (q_c, k_c, v_c), rest_c = self.clip_block.before(clip, self.clip_block.adaLN_modulation(g_mod), clip_rope)
        (q_t, k_t, v_t), rest_t = self.text_block.before(text, self.text_block.adaLN_modulation(g_mod), None)
        k, v = torch.cat((k_x, k_c, k_t), dim=2), torch.cat((v_x, v_c, v_t), dim=2)
        q = q_x if self.last else torch.cat((q_x, q_c, q_t), dim=2)
        return (q, k, v), (rest_x, rest_c, rest_t)

    def after(
        self, latent: Tensor, clip: Tensor, text: Tensor, attended: Tensor, rest: tuple[Tensors, Tensors, Tensors]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds the attention output and the feed-forward output to each residual stream that continues."""
        n, m = latent.shape[1], clip.shape[1]
        latent = self.latent_block.after(latent, attended[:, :n], rest[0])
        if self.last:
            return latent, clip, text
        clip = self.clip_block.after(clip, attended[:, n : n + m], rest[1])
        return latent, clip, self.text_block.after(text, attended[:, n + m :], rest[2])


class FinalLayer(nn.Module):
    """Layer norm, shift and scale from the global condition, then a convolution to the latent width."""

    def __init__(self, width: int, latent_width: int) -> None:
        super().__init__()
        self.adaLN_modulation = adaln(width, 2)
        self.conv = Conv1d(width, latent_width, 7)

    def forward(self, x: Tensor, g_mod: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(g_mod).chunk(2, dim=-1)
        y: Tensor = self.conv(modulate(x, shift, scale))
        return y
