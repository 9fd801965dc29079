"""The demo's teacher. It replaces Synchformer, which learned from real videos with sound when things happen.

It uses a shortcut that only a renderer offers: the labels say, per frame and kind, when an event becomes visible. A
linear head on the pooled features predicts that and is discarded after training. Training starts with clean clips.
Later half of the clips are two side by side, so that the tokens stay local when a scene has two sources.
Shapes: B segments, J time steps per segment (8), K kinds, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selva_ref.demo.world.clip_bank import SEGMENT, SEGMENTS, STEP, ClipBank
from selva_ref.demo.world.kinds import KINDS
from selva_ref.model.video_encoder import Teacher

CLEAN_SHARE = 0.3
"""Part of the training that uses only clean clips."""
RARE_WEIGHT = 4.0
"""Weight of a frame with an event, compared with one without."""


class TaughtTeacher(nn.Module):
    """A teacher and the head that predicts its labels."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        for name, value in teacher.named_parameters():
            if name.endswith(("cls_token", "pos_embed", "temp_embed")):
                nn.init.normal_(value, std=0.02)
        self.head = nn.Linear(teacher.config.width, 3 * len(KINDS))

    def forward(self, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Segments (B, 3, 16, H, W) → logits of onsets (B, 16, K), one per frame, and of presence (B, J, K)."""
        features_BJD = self.teacher(segments[:, None])[:, 0]
        onsets, presence = self.head(features_BJD).float().split((2 * len(KINDS), len(KINDS)), -1)
        return onsets.unflatten(-1, (2, -1)).flatten(1, 2), presence


def draw_segments(bank: ClipBank, rng: np.random.Generator, batch: int, mixed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws random segments, the last `mixed` of them side by side with another kind, half of those near.

    Returns:
        segments (B, 3, 16, H, W) float, onsets (B, 16, K) and presence (B, K) as 0 or 1.
    """
    items, starts = rng.integers(len(bank), size=batch), STEP * rng.integers(SEGMENTS, size=batch)
    pairs, share = bank.different_kind(rng, items), float(rng.uniform(0.35, 0.65))
    frames = torch.stack([bank.frames[i, s : s + SEGMENT] for i, s in zip(items, starts, strict=True)])
    onsets, presence = torch.zeros(batch, SEGMENT, len(KINDS)), torch.zeros(batch, len(KINDS))
    _label(bank, items, starts, np.arange(batch), onsets, presence)
    if mixed:
        rows, left_first = np.arange(batch - mixed, batch), rng.integers(2, size=batch)
        for row, near in zip(rows, rng.random(mixed) < 0.5, strict=True):
            left, right = (items[row], pairs[row]) if left_first[row] else (pairs[row], items[row])
            frames[row] = bank.beside(left, right, share, near, slice(starts[row], starts[row] + SEGMENT))
        _label(bank, pairs[rows], starts[rows], rows, onsets, presence)
    return frames.movedim(1, 2).float().div_(127.5).sub_(1), onsets, presence


def _label(
    bank: ClipBank, items: np.ndarray, starts: np.ndarray, rows: np.ndarray, onsets: Tensor, presence: Tensor
) -> None:
    for item, start, row in zip(items, starts, rows, strict=True):
        kind = int(bank.kinds[item])
        onsets[row, :, kind] = bank.onsets_NT[item, start : start + SEGMENT].float()
        presence[row, kind] = 1


def teacher_loss(
    taught: Callable[[Tensor], tuple[Tensor, Tensor]], segments: Tensor, onsets: Tensor, presence: Tensor
) -> Tensor:
    """Binary cross-entropies: which kinds have an event in which frame, and which kinds are present at all."""
    onset_logits, presence_logits = taught(segments)
    weight = 1 + (RARE_WEIGHT - 1) * onsets
    timing = F.binary_cross_entropy_with_logits(onset_logits, onsets, weight, reduction="sum") / max(
        1.0, float(onsets.sum())
    )
    what = F.binary_cross_entropy_with_logits(presence_logits, presence[:, None].expand_as(presence_logits))
    return timing + what
