"""The video encoder's deployment form.

- The scale of the scores is part of the query projection, or of the query norm. Keys and values of the text are
  contiguous in their projection.
- A single query per head is too small for one matrix product per head. The CLS row of the backbone's attention puts its
  queries into a block-diagonal matrix, so that one product uses the keys in their existing layout; the weights and
  values work the same way.
- The query of the pooling is the same for every picture, so each patch needs only `heads` products instead of keys and
  values.

Shapes: B segments, clips or time steps, N tokens, P patches, L text tokens, D width, E = 3D, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from selva_export.rewrites.layers import attend, deinterleave, replace
from selva_ref.model.motionformer import DividedAttention, SpatialPooling
from selva_ref.model.video_encoder import CrossAttention


def rewrite(root: nn.Module) -> None:
    """Rewrites every layer of a video encoder below `root`."""
    replace(root, DividedAttention, GraphDividedAttention)
    replace(root, SpatialPooling, GraphSpatialPooling)
    replace(root, CrossAttention, GraphCrossAttention)


class GraphDividedAttention(nn.Module):
    """`DividedAttention` with the scale in the query rows and a block-diagonal CLS row."""

    @torch.no_grad()
    def __init__(self, plain: DividedAttention) -> None:
        super().__init__()
        self.heads = plain.heads
        self.qkv, self.proj = plain.qkv, plain.proj
        width = self.proj.in_features
        for rows in (self.qkv.weight, self.qkv.bias):
            rows[:width].mul_((width // self.heads) ** -0.5)

    def forward(self, x_BND: Tensor, patches: str, **sizes: int) -> Tensor:
        qkv = self.qkv(x_BND)
        cls, rest = qkv.split((1, qkv.shape[1] - 1), dim=1)
        q, k, v = rearrange(rest, f"b {patches} (three h d) -> three b g h m d", three=3, h=self.heads, **sizes)
        _, k_cls, v_cls = repeat(cls, "b one (three h d) -> three b g h one d", three=3, h=self.heads, g=sizes["g"])
        k, v = torch.cat((k_cls, k), dim=3), torch.cat((v_cls, v), dim=3)
        out = rearrange(attend(q, k, v), f"b g h m d -> b {patches} (h d)")
        y: Tensor = self.proj(torch.cat((self._cls(qkv), out), dim=1))
        return y

    def _cls(self, qkv_BNE: Tensor) -> Tensor:
        """The CLS row, (B, 1, D): its query against all keys."""
        width = qkv_BNE.shape[-1] // 3
        heads = torch.eye(self.heads, dtype=qkv_BNE.dtype, device=qkv_BNE.device)
        blocks_DH = repeat(heads, "h1 h2 -> (h1 d) h2", d=width // self.heads)
        queries = qkv_BNE[:, 0, :width, None] * blocks_DH
        scores = qkv_BNE @ F.pad(queries, (0, 0, width, width))
        weights = scores.float().softmax(1).to(qkv_BNE.dtype)
        mixed_BHD = (weights.transpose(1, 2) @ qkv_BNE)[..., 2 * width :]
        return (mixed_BHD * blocks_DH.T).sum(1, keepdim=True)


class GraphSpatialPooling(nn.Module):
    """`SpatialPooling` without keys and values.

    q (Wk x + bk) is (q Wk) x plus a constant that softmax cancels. The weighted mean of Wv x + bv is Wv mean(x) + bv.
    """

    def __init__(self, plain: SpatialPooling) -> None:
        super().__init__()
        self.heads = plain.self_attn.num_heads
        self.scale = plain.self_attn.head_dim**-0.5
        self.cls_token, self.self_attn = plain.cls_token, plain.self_attn
        self.linear1, self.linear2 = plain.linear1, plain.linear2
        self.norm1, self.norm2 = plain.norm1, plain.norm2

    def forward(self, x_BPD: Tensor) -> Tensor:
        cls = self.cls_token.expand(x_BPD.shape[0], -1, -1)
        seen = self.norm1(torch.cat((cls, x_BPD), dim=1))
        wq, wk, wv = rearrange(self.self_attn.in_proj_weight, "(three h d) e -> three h d e", three=3, h=self.heads)
        bq, _, bv = rearrange(self.self_attn.in_proj_bias, "(three h d) -> three h d", three=3, h=self.heads)
        query = wq @ seen[0, 0] + bq
        asked = ((query * self.scale)[:, None] @ wk).flatten(0, 1)
        weights = (seen @ asked.T).float().softmax(1).to(seen.dtype)
        mixed = rearrange(weights.transpose(1, 2) @ seen, "b h e -> h b e")
        out = rearrange(mixed @ wv.transpose(1, 2) + bv[:, None], "h b d -> b (h d)")
        x = cls[:, 0] + self.self_attn.out_proj(out)
        y: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return y


class GraphCrossAttention(nn.Module):
    """`CrossAttention` with contiguous keys and values, and the scale in the query norm."""

    @torch.no_grad()
    def __init__(self, plain: CrossAttention) -> None:
        super().__init__()
        self.heads = plain.heads
        self.q_proj, self.kv_proj = plain.q_proj, plain.kv_proj
        self.q_norm, self.k_norm = plain.q_norm, plain.k_norm
        deinterleave(self.kv_proj, self.heads, 2)
        self.q_norm.weight.mul_(self.q_norm.weight.shape[0] ** -0.5)

    def forward(self, x_BND: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        q = rearrange(self.q_proj(x_BND), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.kv_proj(text_BLD), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        out = attend(self.q_norm(q), self.k_norm(k), v, mask_BL[:, None, None, :])
        return rearrange(out, "b h n d -> b n (h d)")
