"""The demo's image tower: a small CLIP tower that learns which kinds of things are in a picture.

CLIP learns pictures and captions together. Here the text tower is finished, and each kind of thing has one vector in
its space. A picture's feature comes close to the vectors of the kinds that it shows (pairwise sigmoid loss, as in
SigLIP, arXiv 2303.15343).
Shapes: B frames, K kinds, E width of a feature, H, W pixels, C frames of a clip.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selva_ref.demo.models.text import Prompts
from selva_ref.demo.world.clip_bank import PICTURES, ClipBank
from selva_ref.demo.world.kinds import KINDS
from selva_ref.model.clip_image import ClipImageTower

FIRST_SCALE, FIRST_BIAS = 10.0, -3.0
"""Factor and offset of the cosines before training. Most kinds are not in a picture."""


def kind_vectors(prompts: Prompts, text_CLE: Tensor) -> Tensor:
    """A unit vector for each kind, (K, E): the mean token of its captions, without what all kinds have in common."""
    means = torch.stack([text_CLE[prompts.kinds == kind].mean((0, 1)) for kind in range(len(KINDS))])
    return F.normalize(means - means.mean(0), dim=-1)


class TaughtImageTower(nn.Module):
    """The tower, and how a cosine becomes the probability that a kind is in the picture."""

    def __init__(self, tower: ClipImageTower, kinds_KE: Tensor) -> None:
        super().__init__()
        self.tower = tower
        for name, value in tower.named_parameters():
            if name.endswith(("class_embedding", "positional_embedding", "visual.proj")):
                nn.init.normal_(value, std=tower.config.width**-0.5)
            elif name.endswith("in_proj_weight"):
                nn.init.xavier_uniform_(value)
        self.kinds_KE = nn.Buffer(kinds_KE, persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, 3, H, W) → logits of the kinds, (B, K)."""
        y: Tensor = self.log_scale.exp() * (self.tower(frames / 255) @ self.kinds_KE.T) + self.bias
        return y


def image_loss(taught: TaughtImageTower, frames: Tensor, shown_BK: Tensor) -> Tensor:
    """Binary cross-entropy of each kind: is it in the picture?"""
    return F.binary_cross_entropy_with_logits(taught(frames).float(), shown_BK)


def shown_kinds(bank: ClipBank) -> Tensor:
    """(clips, K) 1 for each kind that a clip shows, else 0."""
    shown = torch.zeros(len(bank), len(KINDS))
    for row, scene in zip(shown, bank.scenes, strict=True):
        row[[KINDS.index(source.kind) for source in scene.sources]] = 1
    return shown


def draw_frames(bank: ClipBank, rng: np.random.Generator, batch: int) -> tuple[Tensor, np.ndarray]:
    """Draws random frames, uint8 (batch, 3, H, W), and the clip of each."""
    items = rng.integers(len(bank), size=batch)
    moments = rng.integers(bank.frames.shape[1], size=batch)
    return torch.stack([bank.frames[i, t] for i, t in zip(items, moments, strict=True)]), items


@torch.no_grad()
def picture_tokens(tower: ClipImageTower, frames_BTCHW: Tensor) -> Tensor:
    """The visual tokens of clips: uint8 frames (B, T, 3, H, W) at the video's rate → (B, C, E)."""
    pictures = frames_BTCHW[:, PICTURES]
    y: Tensor = tower(pictures.flatten(0, 1) / 255).unflatten(0, pictures.shape[:2])
    return y


def bank_tokens(tower: ClipImageTower, bank: ClipBank) -> Tensor:
    """The visual tokens of every clip, (clips, C, E)."""
    return torch.cat([picture_tokens(tower, frames) for frames in bank.frames.split(16)])
