"""Generates many stems at a time from cached features, for evaluations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selva_ref.model.flow_matching import Flow, euler
from selva_ref.model.generator import Conditions, Generator
from selva_ref.model.vae import VAE
from selva_ref.training.losses import covered_visual_tokens

Vocode = Callable[[Tensor], Tensor]
"""The vocoder, perhaps compiled: mel (B, M, T) → wave (B, 1, samples)."""


@torch.inference_mode()
def sample_stems(
    generator: Generator,
    vae: VAE,
    vocoder: Vocode,
    sync_BND: Tensor,
    text_BLD: Tensor,
    *,
    latent_length: int,
    seed: int,
    clip_BCE: Tensor | None = None,
    steps: int = 25,
    guidance: float = 4.5,
) -> npt.NDArray[np.float32]:
    """Returns audio (B, samples), one row per row of features; the same seed gives the same noise.

    Without visual tokens `clip_BCE` the generator gets its empty ones.
    """
    conditions = prepared(generator, sync_BND, text_BLD, latent_length, clip_BCE)
    flow = guided(generator, conditions, sync_BND.shape[1], guidance)
    noise = noise_like(conditions, generator, seed)
    return heard(generator, vae, vocoder, euler(flow, noise, steps=steps))


def prepared(
    generator: Generator, sync_BND: Tensor, text_BLD: Tensor, latent_length: int, clip_BCE: Tensor | None = None
) -> Conditions:
    """The generator's conditions for rows of features; see `sample_stems`."""
    if clip_BCE is None:
        clip_BCE = generator.empty_clip(len(sync_BND), covered_visual_tokens(sync_BND.shape[1]))
    return generator.prepare(sync_BND, clip_BCE, text_BLD, latent_length=latent_length)


def guided(generator: Generator, conditions: Conditions, sync_length: int, guidance: float) -> Flow:
    """The flow with classifier-free guidance."""
    empty = generator.prepare_empty(conditions, sync_length=sync_length)
    return lambda t, x: generator.guided_flow(x, torch.tensor([t]), conditions, empty, guidance)


def noise_like(conditions: Conditions, generator: Generator, seed: int) -> Tensor:
    """Noise (B, T, Z) to start from."""
    shape = (*conditions.sync_f.shape[:2], generator.config.latent_width)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


@torch.no_grad()
def heard(generator: Generator, vae: VAE, vocoder: Vocode, latent_BTZ: Tensor) -> npt.NDArray[np.float32]:
    """Audio (B, samples) of the generator's latents."""
    mel_BMT = vae.decode(generator.unnormalize(latent_BTZ).transpose(1, 2))
    out: npt.NDArray[np.float32] = vocoder(mel_BMT)[:, 0].numpy()
    return out


def in_batches(count: int, size: int, make: Callable[[slice], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Calls `make` on slices of at most `size` and joins the results."""
    return np.concatenate([make(slice(start, start + size)) for start in range(0, count, size)])
