"""The text-conditioned video encoder and its teacher, split into a part that depends on the text and one that does not.

`backbone` sees only the video. `select` combines its tokens with the text. The whole encoder is one after the other.
Shapes: B clips, S segments, N tokens per segment (8*196), L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_ref.model.layers import GatedMLP, LayerNorm, RMSNorm
from selva_ref.model.motionformer import Motionformer
from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import VideoConfig


def segment(frames_BTCHW: Tensor, config: VideoConfig) -> Tensor:
    """Frames (B, T, 3, H, W) → overlapping segments (B, S, 3, 16, H, W), one every 8 frames."""
    windows = frames_BTCHW.unfold(1, config.segment_frames, config.segment_step)  # b s c h w f
    return windows.movedim(-1, 3)


KEPT_BLOCK_BYTES = 32 << 20
"""The C library gives larger blocks of memory back at once, and a CPU has to clear every new one. On two cores
all 24 segments of 8 s take 63 s one after the other, and 74 s in one batch."""


def in_batches(segments: Tensor, config: VideoConfig) -> tuple[Tensor, ...]:
    """Divides segments (B, S, …) into batches (B, S', …) whose activations a CPU keeps: one segment at official size.

    Segments do not see each other. On a GPU, and where gradients are needed, there is one batch.
    """
    if segments.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (segments,)
    hidden_bytes = 4 * segments.shape[0] * config.time_tokens * config.grid**2 * 4 * config.width
    parts: tuple[Tensor, ...] = segments.split(max(1, KEPT_BLOCK_BYTES // hidden_bytes), dim=1)
    return parts


class CrossAttention(nn.Module):
    """Cross-attention from video tokens (queries) to text tokens. The k/v index is innermost in `kv_proj`'s outputs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.kv_proj = nn.Linear(width, 2 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    def forward(self, x_BND: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        q = rearrange(self.q_proj(x_BND), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.kv_proj(text_BLD), "b l (h d two) -> two b h l d", two=2, h=self.heads)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, mask_BL[:, None, None, :])
        return rearrange(out, "b h n d -> b n (h d)")


class CrossBlock(nn.Module):
    """x += norm1(linear1(attention)); x += ffn(norm2 x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = CrossAttention(width, heads)
        self.linear1 = nn.Linear(width, width)
        self.norm2 = LayerNorm(width)
        self.ffn = GatedMLP(width, 4 * width)

    def forward(self, x_BND: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        x_BND = x_BND + self.norm1(self.linear1(self.attn(x_BND, text_BLD, mask_BL)))
        y: Tensor = x_BND + self.ffn(self.norm2(x_BND))
        return y


class Teacher(OfficialModule):
    """The same network without text. Its features of a picture that shows only the target teach the student."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        self.vfeat_extractor = Motionformer(config)

    def load_official(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Loads weights under their official names; drops the audio half of a Synchformer file.

        Raises:
            CheckpointError: a name is missing, unexpected or has the wrong shape.
        """
        own = {name: value for name, value in state_dict.items() if name.startswith("vfeat_extractor.")}
        return super().load_official(own)

    def forward(self, segments: Tensor) -> Tensor:
        """Segments (B, S, 3, 16, H, W) in [-1, 1] → features (B, S, 8, D)."""
        return torch.cat([self._features(part) for part in in_batches(segments, self.config)], dim=1)

    def _features(self, segments: Tensor) -> Tensor:
        tokens = self.vfeat_extractor.tokens(segments.flatten(0, 1))
        y: Tensor = self.vfeat_extractor.pool(tokens).unflatten(0, segments.shape[:2])
        return y


class VideoEncoder(OfficialModule):
    """Video and text → sync features, eight per segment."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        width, text_width = config.width, config.text_width
        self.sup_text_feat = nn.Parameter(torch.zeros(config.sup_tokens, text_width))
        self.empty_string_feat = nn.Parameter(torch.zeros(1, text_width))  # in the checkpoint, but not used
        self.vfeat_extractor = Motionformer(config)
        self.text_proj = nn.Sequential(nn.Linear(text_width, width), nn.SiLU(), GatedMLP(width, 4 * width))
        self.synch_text_cross_blocks = nn.ModuleList([CrossBlock(width, config.heads)])

    def backbone(self, segments: Tensor) -> Tensor:
        """Segments (B, S, 3, 16, H, W) in [-1, 1] → tokens (B, S*N, D). Does not depend on the text."""
        tokens = self.vfeat_extractor.tokens(segments.flatten(0, 1))
        y: Tensor = tokens.unflatten(0, segments.shape[:2]).flatten(1, 2)
        return y

    def project_text(self, text_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """T5 features and mask → [SUP] tokens and text at the video's width, (B, 5 + L, D), and the mask of both."""
        batch = text_BLD.shape[0]
        sup = self.sup_text_feat.expand(batch, -1, -1)
        seen = torch.ones(batch, sup.shape[1], dtype=torch.bool, device=mask_BL.device)
        text = torch.cat((sup, text_BLD.to(sup.dtype)), dim=1)
        return self.text_proj(text), torch.cat((seen, mask_BL), dim=1)

    def select(self, tokens: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Tokens (B, S*N, D), T5 features (B, L, Dt), mask (B, L) true for real tokens → sync features (B, S*8, D)."""
        text, mask = self.project_text(text_BLD, mask_BL)
        x = tokens
        for block in self.synch_text_cross_blocks:
            x = block(x, text, mask)
        per_segment = self.config.time_tokens * self.config.grid**2
        segments = rearrange(x, "b (s n) d -> (b s) n d", n=per_segment)
        return rearrange(self.vfeat_extractor.pool(segments), "(b s) t d -> b (s t) d", b=x.shape[0])

    def forward(self, frames: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [-1, 1] at 25 fps → sync features (B, S*8, D)."""
        parts = in_batches(segment(frames, self.config), self.config)
        return torch.cat([self.select(self.backbone(part), text_BLD, mask_BL) for part in parts], dim=1)
