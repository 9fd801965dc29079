"""A small classifier that names the kind of sound in a stem, for the evaluation. It is trained on clean clips only.

It never sees what the demo generates. Noise on its log-mels stops it from relying on digital silence.
Shapes: B batch, M mel bands, F mel frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selva_ref.demo.world.kinds import KINDS


class Listener(nn.Module):
    """Log-mel (B, M, F) → logits of the kinds, (B, K): two convolutions, then the maximum over time."""

    def __init__(self, bands: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 5, padding=2)
        self.conv2 = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.head = nn.Linear(width, len(KINDS))

    def forward(self, mel_BMF: Tensor) -> Tensor:
        x = F.relu(self.conv1(mel_BMF.clamp(min=-3.0) + 3))
        y: Tensor = self.head(F.relu(self.conv2(x)).amax(-1))
        return y


def listener_loss(listener: Listener, mels_BMF: Tensor, kinds: Tensor, noise_seed: int) -> Tensor:
    """Cross-entropy on log-mels with noise of 0.3 decades and a random shift of the level."""
    generator = torch.Generator().manual_seed(noise_seed)
    noise = 0.3 * torch.randn(mels_BMF.shape, generator=generator)
    level = 0.3 * torch.randn(len(mels_BMF), 1, 1, generator=generator)
    return F.cross_entropy(listener(mels_BMF + noise + level), kinds)
