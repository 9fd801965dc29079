"""The demo's generator: first trained on single sources, in place of MMAudio, then in the paper's second stage.

Features are computed once and stored, so that a training step only runs the generator.
Shapes: N clips, B batch, T latent length, Z latent width, S*8 sync features, D their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from selva_ref.demo.models.text import Prompts
from selva_ref.model.generator import Generator
from selva_ref.model.vae import VAE
from selva_ref.training.losses import flow_matching_loss

NULL_SHARE = 0.1
"""Probability of an empty video, and independently of an empty text."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The training data of the generator: one row per clip (or per mixed clip with its target)."""

    sync: Tensor
    """(N, S*8, D) sync features."""
    mean: Tensor
    """(clips, T, Z) posterior means of the latents."""
    deviation: Tensor
    """(clips, T, Z) posterior deviations of the latents."""
    items: np.ndarray
    """(N,) index of the target's clip."""
    kinds: np.ndarray
    """(N,) kind of the target."""

    def __len__(self) -> int:
        return len(self.kinds)


@torch.no_grad()
def posteriors(vae: VAE, mels_NMF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents, (N, T, Z) each."""
    parts = [vae.encode(mels) for mels in mels_NMF.split(16)]
    mean, deviation = (torch.cat(values).transpose(1, 2).contiguous() for values in zip(*parts, strict=True))
    return mean, deviation


@torch.no_grad()
def set_latent_statistics(generator: Generator, mean_NTZ: Tensor, deviation_NTZ: Tensor) -> None:
    """Sets the mean and deviation per channel with which the generator normalises, from posteriors."""
    spread = (deviation_NTZ.square() + mean_NTZ.square()).mean((0, 1)) - mean_NTZ.mean((0, 1)).square()
    generator.latent_mean.copy_(mean_NTZ.mean((0, 1)))
    generator.latent_std.copy_(spread.sqrt())


@torch.no_grad()
def start_generator(generator: Generator) -> None:
    """Starts from a flow of zero (adaLN and last layer at zero) and small random empty conditions."""
    for name, value in generator.named_parameters():
        if "adaLN_modulation" in name or name.startswith("final_layer.conv"):
            nn.init.zeros_(value)
        elif name in ("empty_string_feat", "empty_clip_feat", "empty_sync_feat", "sync_pos_emb"):
            nn.init.normal_(value, std=0.1)


def generator_loss(
    generator: Generator, examples: Examples, prompts: Prompts, text_CLD: Tensor, rng: np.random.Generator, batch: int
) -> Tensor:
    """Flow matching loss on random rows."""
    rows = rng.integers(len(examples), size=batch)
    text = text_CLD[prompts.draw(rng, examples.kinds[rows])]
    return generator_loss_on(generator, examples, rows, examples.sync[rows].float(), text, rng)


def generator_loss_on(
    generator: Generator,
    examples: Examples,
    rows: np.ndarray,
    sync_BND: Tensor,
    text_BLD: Tensor,
    rng: np.random.Generator,
) -> Tensor:
    """Flow matching loss on given rows, with null conditions for guidance; t = sigmoid(normal)."""
    items, batch = examples.items[rows], len(rows)
    shape = (batch, *examples.mean.shape[1:])

    def normal(*size: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(size, dtype=np.float32))

    latents = examples.mean[items] + examples.deviation[items] * normal(*shape)
    return flow_matching_loss(
        generator,
        generator.normalize(latents),
        sync_BND,
        text_BLD,
        noise=normal(*shape),
        t_B=normal(batch).sigmoid(),
        drop_video_B=torch.from_numpy(rng.random(batch) < NULL_SHARE),
        drop_text_B=torch.from_numpy(rng.random(batch) < NULL_SHARE),
    )
