"""The input of a stage: two videos mixed on the fly, and the output expected for the target alone.

Shapes: B batch, T frames, L text tokens, N sync features, D their width; latents are (B, latent length, latent width).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from selva_bundle.errors import SelvaError
from selva_bundle.lengths import SequenceRules
from selva_ref.training.data.clips import read_frames
from selva_ref.training.data.store import Features
from selva_ref.training.errors import TrainingError
from selva_ref.training.examples.draws import held_out_generator, item_at, item_generator, split
from selva_ref.training.examples.mixing import different_label, draw_share, other_label, side_by_side
from selva_ref.training.paths import STRENGTHS, draw_spans
from selva_ref.training.settings import RunSettings

NULL_PROBABILITY = 0.1
"""Probability that the generator's video, and independently its text, is replaced by the learned empty one."""

Batch = dict[str, Tensor]
Targets = Callable[[Features, int, int | None, np.random.Generator], dict[str, np.ndarray]]
"""Makes the targets of a row. With the row of an absent text, that text is asked for, and silence is right."""


def distillation_targets(
    features: Features, row: int, absent: int | None, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Targets of stage 1: the text, t5 (L, D) and t5_mask (L,), and teacher (N, D), which an absent text does not use.

    What is right for an absent text is in the mixed video: see `Distillation`.
    """
    text = features.text(row if absent is None else absent)
    return {"t5": text.t5, "t5_mask": text.t5_mask, "teacher": features.teacher(row)}


def flow_targets(
    features: Features,
    row: int,
    absent: int | None,
    rng: np.random.Generator,
    silence: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Targets of stage 2: both texts, a latent drawn from the VAE's posterior, noise, t and null conditions.

    t = sigmoid(normal). The video and, independently, the text are null with probability 0.1. `silence` is the
    posterior of no sound, mean and deviation (T, Z), for an absent text.
    """
    text = features.text(row if absent is None else absent)
    posterior = features.posterior(row) if absent is None else silence
    assert posterior is not None
    mean, deviation = posterior
    return {
        "t5": text.t5,
        "t5_mask": text.t5_mask,
        "clip_text": text.clip,
        "latent": mean + deviation * rng.standard_normal(mean.shape, np.float32),
        "noise": rng.standard_normal(mean.shape, np.float32),
        "t": np.asarray(1 / (1 + np.exp(-rng.standard_normal())), np.float32),
        "drop_video": np.asarray(rng.random() < NULL_PROBABILITY),
        "drop_text": np.asarray(rng.random() < NULL_PROBABILITY),
    }


def student_targets(
    features: Features, row: int, absent: int | None, rng: np.random.Generator, *, spans: int
) -> dict[str, np.ndarray]:
    """What the student's loss draws: both texts, noise, guidance strength, and the spans (K,) from time t to r.

    `latent`, the posterior's mean, is only shown in validation.
    """
    text, mean = features.text(row if absent is None else absent), features.posterior(row)[0]
    t, r = draw_spans(rng, spans)
    return {
        "t5": text.t5,
        "t5_mask": text.t5_mask,
        "clip_text": text.clip,
        "latent": mean,
        "noise": rng.standard_normal(mean.shape, np.float32),
        "strength": np.asarray(rng.uniform(*STRENGTHS), np.float32),
        "t": t,
        "r": r,
    }


class MixedClips(Dataset["Batch | str"]):
    """Batches of clips; a key holds (step, index in the global batch) of each item."""

    def __init__(self, features: Features, rules: SequenceRules, settings: RunSettings, targets: Targets) -> None:
        self.features, self.rules, self.settings, self.targets = features, rules, settings, targets
        if settings.holdout >= len(features.rows):
            clips = f"{len(features.rows)} clips, of which {settings.holdout} are held out"
            raise TrainingError(f"{features.folder}: {clips}; hold out fewer with --holdout")
        train, held_out = split(settings.seed, len(features.rows), settings.holdout)
        self.rows = [features.rows[place] for place in train]
        self.held_out_rows = [features.rows[place] for place in held_out]
        self.labels = [features.clip(row).label for row in self.rows]
        if len(set(self.labels)) < 2:
            raise TrainingError(f"{features.folder}: mixing needs clips of at least two labels")
        if settings.absent and len(set(self.labels)) < 3:
            raise TrainingError(f"{features.folder}: an absent text needs clips of at least three labels")

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch | str:
        """Returns a batch, or an error message instead of raising it, so that no worker traceback hides it."""
        try:
            return _stack([self._example(step, index) for step, index in keys])
        except SelvaError as error:
            return f"{error}; extract again, or restore the video"

    def held_out(self, index: int) -> tuple[Batch, str]:
        """Returns validation clip `index`, as a batch of one, and its label."""
        row, rng = self.held_out_rows[index], held_out_generator(self.settings.seed, index)
        label = self.features.clip(row).label
        pair = different_label([label, *self.labels], 0, rng) - 1
        return _stack([self._mixed(row, self.rows[pair], None, rng)]), label

    def _example(self, step: int, index: int) -> dict[str, np.ndarray]:
        settings, rng = self.settings, item_generator(self.settings.seed, step, index)
        item = item_at(settings.seed, step * settings.batch + index, len(self.rows))
        pair, absent = different_label(self.labels, item, rng), None
        if settings.absent and rng.random() < settings.absent:
            absent = self.rows[other_label(self.labels, {self.labels[item], self.labels[pair]}, rng)]
        return self._mixed(self.rows[item], self.rows[pair], absent, rng)

    def _mixed(self, row: int, pair: int, absent: int | None, rng: np.random.Generator) -> dict[str, np.ndarray]:
        share, target_left = draw_share(rng, self.settings.alpha), bool(rng.random() < 0.5)
        frames = side_by_side(self._frames(row), self._frames(pair), share, target_left)
        asked = self.targets(self.features, row, absent, rng)
        return {"frames": frames.numpy(), "absent": np.asarray(absent is not None), **asked}

    def _frames(self, row: int) -> Tensor:
        return torch.from_numpy(read_frames(self.features.video(row), self.rules, self.features.description.duration_s))


def _stack(examples: list[dict[str, np.ndarray]]) -> Batch:
    return {name: torch.from_numpy(np.stack([example[name] for example in examples])) for name in examples[0]}
