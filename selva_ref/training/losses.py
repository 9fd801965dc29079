"""The losses of stages 1 and 2; the student's is in `paths`.

Shapes: B batch, N sync features, D their width, T latent length, Z latent width, L text tokens, C visual tokens, E
their width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selva_ref.model.flow_matching import path
from selva_ref.model.generator import Generator


def distillation_loss(student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """Mean squared error between the student on the mixed video and the teacher on the target alone, in float32."""
    return F.mse_loss(student_BND.float(), teacher_BND.float())


def flow_matching_loss(
    generator: Generator,
    latents_BTZ: Tensor,
    sync_BND: Tensor,
    text_BLD: Tensor,
    *,
    noise: Tensor,
    t_B: Tensor,
    drop_video_B: Tensor,
    drop_text_B: Tensor,
    visual_tokens: int | None = None,
    clip_BCE: Tensor | None = None,
) -> Tensor:
    """Mean of |v(x_t, t) - (x_1 - x_0)|^2  (conditional flow matching, arXiv 2210.02747).

    Args:
        latents_BTZ: normalised data x_1.
        noise: x_0, (B, T, Z).
        drop_video_B, drop_text_B: bool; where true, the learned empty condition replaces the real one. Sync features
            and visual tokens are dropped together.
        visual_tokens: length of the empty visual stream, floor(8 d); None: d is exactly what the segments cover.
        clip_BCE: visual tokens, as in MMAudio; None: the generator's empty ones, as in SelVA.
    """
    batch, latent_length = latents_BTZ.shape[:2]
    sync = torch.where(drop_video_B[:, None, None], generator.empty_sync(batch, sync_BND.shape[1]), sync_BND)
    text = torch.where(drop_text_B[:, None, None], generator.empty_text(batch), text_BLD)
    if clip_BCE is None:
        clip = generator.empty_clip(batch, visual_tokens or covered_visual_tokens(sync_BND.shape[1]))
    else:
        clip = torch.where(drop_video_B[:, None, None], generator.empty_clip(batch, clip_BCE.shape[1]), clip_BCE)
    conditions = generator.prepare(sync, clip, text, latent_length=latent_length)
    point, velocity = path(noise, latents_BTZ, t_B)
    return F.mse_loss(generator.flow(point, t_B, conditions), velocity)


def covered_visual_tokens(sync_length: int) -> int:
    """floor(8 d) for the duration d of S segments: 8 (S + 1) frames at 25 per second, 8 features per segment."""
    return (sync_length + 8) * 8 // 25
