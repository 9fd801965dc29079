"""The student: a generator that predicts the mean velocity over a span of time, with guidance inside.

One evaluation replaces many guided steps: x_r = x_t + (r - t) u(x_t, t, r, s). It is the generator with two more
embeddings, whose last layers start at zero: at first it predicts what the generator does without guidance.
(SplitMeanFlow, arXiv 2507.16884; the guidance strength is an input, so that it can still be chosen.)
Shapes: B batch, T latent length, Z latent width, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selva_ref.model.generator import Conditions, Generator
from selva_ref.model.generator_blocks import TimeEmbedding
from selva_ref.model.presets import GeneratorConfig

Average = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, T, Z), t (B,), r (B,)) → mean velocity (B, T, Z) from t to r."""


class AverageGenerator(Generator):
    """Predicts the mean velocity of the guided flow."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        rate = 10000.0 if config.v2 else 1.0
        self.span_embed = TimeEmbedding(config.width, config.time_table_width, rate)
        self.strength_embed = TimeEmbedding(config.width, config.time_table_width, rate)
        for embedding in (self.span_embed, self.strength_embed):
            for value in embedding.mlp[-1].parameters():
                nn.init.zeros_(value)

    def average(self, latent_BTZ: Tensor, t: Tensor, r: Tensor, strength: Tensor, c: Conditions) -> Tensor:
        """Mean velocity (B, T, Z), float32, from time `t` to `r` at guidance `strength`, each (1,) or (B,)."""
        g = self.global_over(t, r - t, strength, c)
        latent = self.audio_input_proj(latent_BTZ.to(self.dtype))
        return self.velocity(latent, F.silu(g + c.sync_f), F.silu(g), c)

    def global_over(self, t: Tensor, span: Tensor, strength: Tensor, c: Conditions) -> Tensor:
        """Global condition plus the embeddings of the time, the span and the guidance strength, (B, 1, D)."""
        y: Tensor = self.global_at(t, c) + (self.span_embed(span) + self.strength_embed(strength)).unsqueeze(1)
        return y


def jumps(average: Average, noise: Tensor, *, steps: int = 4) -> Tensor:
    """Goes from noise at time 0 to data at time 1 in equal spans."""
    x = noise
    for i in range(steps):
        t, r = (torch.full((len(noise),), k / steps, device=noise.device) for k in (i, i + 1))
        x = x + average(x, t, r) / steps
    return x
