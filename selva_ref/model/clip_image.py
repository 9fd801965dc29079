"""The CLIP image tower (ViT): one vector for each frame, the visual tokens of MMAudio's generator.

In float16 the residual stream and the norm statistics stay float32, as in the text towers.
Shapes: B frames, S side of a frame in pixels, P patches, N = 1 + P tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_ref.model.layers import LayerNorm
from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import ImageConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of red, green and blue in OpenAI's CLIP."""


class Attention(nn.Module):
    """Self-attention of all tokens. Queries, keys and values are contiguous thirds of `in_proj`'s outputs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv = F.linear(x_BND, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.out_proj(rearrange(out, "b h n d -> b n (h d)"))
        return y


class MLP(nn.Module):
    """Two linear layers with QuickGELU, x sigmoid(1.702 x), between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        h = self.c_fc(x_BND)
        y: Tensor = self.c_proj(h * torch.sigmoid(1.702 * h))
        return y


class Block(nn.Module):
    """x += attention(ln_1 x); x += mlp(ln_2 x), with x in float32."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x_BND: Tensor) -> Tensor:
        dtype = self.ln_1.weight.dtype
        x_BND = x_BND + self.attn(self.ln_1(x_BND).to(dtype)).float()
        y: Tensor = x_BND + self.mlp(self.ln_2(x_BND).to(dtype)).float()
        return y


class VisionTransformer(nn.Module):
    """The network under `visual.*`: normalised pixels → projected CLS token."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        width = config.width
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + config.grid**2, width))
        self.proj = nn.Parameter(torch.zeros(width, config.output))
        self.conv1 = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        self.ln_pre = LayerNorm(width)
        blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), S a multiple of the patch → (B, output), not normalised."""
        patches = rearrange(self.conv1(pixels.to(self.proj.dtype)), "b d h w -> b (h w) d").float()
        cls = self.class_embedding.float().expand(patches.shape[0], 1, -1)
        x_BND = self.ln_pre(torch.cat((cls, patches), dim=1) + self.positional_embedding.float())
        for block in self.transformer["resblocks"].children():
            x_BND = block(x_BND)
        y: Tensor = self.ln_post(x_BND[:, 0]).to(self.proj.dtype) @ self.proj
        return y


class ClipImageTower(OfficialModule):
    """CLIP's image tower (QuickGELU). The weights have open_clip's names, `visual.*`."""

    ignored_names = (
        "token_embedding.*",
        "positional_embedding",
        "transformer.*",
        "ln_final.*",
        "text.*",
        "text_model.*",
        "text_projection*",
        "logit_*",
        "attn_mask",
        "*position_ids",
    )

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTransformer(config)
        self.pixel_mean = nn.Buffer(torch.tensor(MEAN)[:, None, None], persistent=False)
        self.pixel_std = nn.Buffer(torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, S, S) in [0, 1], S >= grid * patch → features (B, output), float32 of length 1.

        Only the first grid * patch rows and columns of pixels are seen: the official tower sees 378 of 384.
        """
        seen = self.config.grid * self.config.patch
        pixels = (frames[..., :seen, :seen].float() - self.pixel_mean) / self.pixel_std
        return F.normalize(self.visual(pixels).float(), dim=-1)

    def load_official(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Loads open_clip's or transformers' names, without the text tower.

        Raises:
            CheckpointError: the weights do not fit.
        """
        return super().load_official(_stacked({_open_clip_name(name): value for name, value in state_dict.items()}))


_TRANSFORMERS_NAMES = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm.", "ln_pre."),  # transformers' own spelling
    ("encoder.layers.", "transformer.resblocks."),
    (".self_attn.", ".attn."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    ("post_layernorm.", "ln_post."),
)


def _open_clip_name(name: str) -> str:
    if name.startswith("vision_model."):
        name = name.replace("vision_model.", "visual.", 1)
        for theirs, ours in _TRANSFORMERS_NAMES:
            name = name.replace(theirs, ours)
    return name


def _stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins transformers' queries, keys and values, and turns its projection from (out, in) to (in, out)."""
    result = dict(tensors)
    for query in tensors:
        if ".attn.q_proj." not in query or not query.startswith("visual."):
            continue
        names = [query.replace(".q_proj.", f".{which}_proj.") for which in "qkv"]
        if tensors.keys() >= set(names):
            result[query.replace(".q_proj.", ".in_proj_")] = torch.cat([result.pop(name) for name in names])
    if "visual_projection.weight" in tensors:
        result["visual.proj"] = result.pop("visual_projection.weight").mT
    return result
