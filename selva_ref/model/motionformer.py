"""The visual backbone: a "divided space-time" Motionformer over short segments, and its spatial pooling.

Each block is time attention, then space attention, then an MLP, all pre-norm (Synchformer, arXiv 2401.16423;
Motionformer, arXiv 2106.05392). The backbone does not depend on the text, so the runtime runs it once per video.
Shapes: B segments, T tokens in time (8), P patches per frame (196), N = T*P tokens, D width, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from selva_ref.model.layers import LayerNorm
from selva_ref.model.presets import VideoConfig


class DividedAttention(nn.Module):
    """Attention in which CLS sees every token, and a patch sees CLS and its own position (time) or frame (space)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, patches: str, **sizes: int) -> Tensor:
        """Attends within groups of patches; `patches` names their axes as (group, member): "(m g)" for time."""
        qkv = rearrange(self.qkv(x_BND), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        cls, rest = qkv.split((1, qkv.shape[3] - 1), dim=3)
        q, k, v = rearrange(rest, f"three b h {patches} d -> three b h g m d", **sizes)
        _, k_cls, v_cls = repeat(cls, "three b h one d -> three b h g one d", g=sizes["g"])
        out = F.scaled_dot_product_attention(q, torch.cat((k_cls, k), dim=3), torch.cat((v_cls, v), dim=3))
        out = rearrange(out, f"b h g m d -> b h {patches} d")
        out_cls = F.scaled_dot_product_attention(cls[0], qkv[1], qkv[2])
        y: Tensor = self.proj(rearrange(torch.cat((out_cls, out), dim=2), "b h n d -> b n (h d)"))
        return y


class MLP(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """x += time(norm3 x); x += space(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        width = config.width
        self.time = {"g": config.grid**2, "m": config.time_tokens}
        self.space = {"g": config.time_tokens, "m": config.grid**2}
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = DividedAttention(width, config.heads)
        self.timeattn = DividedAttention(width, config.heads)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)
        self.norm3 = LayerNorm(width, eps=1e-6)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.timeattn(self.norm3(x_BND), "(m g)", **self.time)
        x_BND = x_BND + self.attn(self.norm1(x_BND), "(g m)", **self.space)
        y: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return y


class PatchEmbed(nn.Module):
    """Splits frames into patches with one convolution whose stride equals its kernel."""

    def __init__(self, width: int, kernel: tuple[int, int] | tuple[int, int, int]) -> None:
        super().__init__()
        self.proj: nn.Conv2d | nn.Conv3d
        if len(kernel) == 3:
            self.proj = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel)
        else:
            self.proj = nn.Conv2d(3, width, kernel_size=kernel, stride=kernel)

    def forward(self, video: Tensor) -> Tensor:
        y: Tensor = self.proj(video)
        return y


class SpatialPooling(nn.Module):
    """Puts a learned CLS before the patches of one time step, runs one pre-norm encoder layer, and returns the CLS row.

    Only the CLS row is used, so only CLS asks: the patches are keys and values.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.norm2 = LayerNorm(width, eps=1e-6)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Patches (B, P, D) of B time steps → one vector per time step, (B, D)."""
        cls = self.cls_token.expand(x_BPD.shape[0], -1, -1)
        seen = self.norm1(torch.cat((cls, x_BPD), dim=1))
        out, _ = self.self_attn(seen[:, :1], seen, seen, need_weights=False)
        x = (cls + out)[:, 0]
        y: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return y


class Motionformer(nn.Module):
    """Turns segments of frames into normalised patch tokens, and pools the tokens into one vector per time step."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, config.time_tokens, width))
        self.patch_embed = PatchEmbed(width, (patch, patch))  # in the checkpoint, but not used
        self.patch_embed_3d = PatchEmbed(width, (2, patch, patch))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = LayerNorm(width, eps=1e-6)
        self.spatial_attn_agg = SpatialPooling(width, config.heads)

    def tokens(self, segments: Tensor) -> Tensor:
        """Segments (B, 3, 16, H, W) in [-1, 1] → tokens (B, T*P, D), time-major, without CLS."""
        x = rearrange(self.patch_embed_3d(segments), "b d t h w -> b t (h w) d")
        x = x + self.pos_embed[:, None, 1:] + self.temp_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat((cls, rearrange(x, "b t p d -> b (t p) d")), dim=1)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.norm(x[:, 1:])
        return y

    def pool(self, x_BND: Tensor) -> Tensor:
        """Tokens (B, T*P, D) → (B, T, D)."""
        t = self.config.time_tokens
        pooled = self.spatial_attn_agg(rearrange(x_BND, "b (t p) d -> (b t) p d", t=t))
        y: Tensor = rearrange(pooled, "(b t) d -> b t d", t=t)
        return y
