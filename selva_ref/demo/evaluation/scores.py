"""Scores of the demo: compares stems for scenes with two sources with the times at which each source sounds.

There are two test sets that training never sees: (a) "mixed", two clips side by side as in the paper; (b) "composed",
two things in one frame. Every scene gives two stems, one for each of its sources. A row of the table is a way to make
sync features and a generator; noise, scenes and prompts are the same in all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selva_ref.demo.evaluation.events import Score, score
from selva_ref.demo.models.listener import Listener
from selva_ref.demo.models.text import Prompts
from selva_ref.demo.sampling import Vocode, in_batches, sample_stems
from selva_ref.demo.selection import backbone_tokens, draw_pair
from selva_ref.demo.world.clip_bank import ClipBank, single_scenes
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.scenes import SAMPLES, SoundSource, composed_scene, render
from selva_ref.model.generator import Generator
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.vae import VAE
from selva_ref.model.video_encoder import Teacher

BATCH = 16


@dataclass(frozen=True, kw_only=True)
class TestScene:
    """A scene and what sounds in it: two things, in the tests of this module."""

    frames: Tensor
    """uint8 (T, 3, H, W)."""
    sources: tuple[SoundSource, ...]


def mixed_tests(count: int, seed: int) -> list[TestScene]:
    """Test set (a): clips not used in training, side by side, half of the columns each."""
    bank = ClipBank(single_scenes(2 * count, seed))
    found = []
    for index in range(count):
        pair = draw_pair(bank, np.random.default_rng([seed, 4, index]), share=0.5)
        sources = tuple(bank.scenes[item].sources[0] for item in (pair.left, pair.right))
        found.append(TestScene(frames=pair.frames(bank), sources=sources))
    return found


def composed_tests(count: int, seed: int) -> list[TestScene]:
    """Test set (b): two things in one frame."""
    scenes = [composed_scene((seed, 5, index)) for index in range(count)]
    return [TestScene(frames=torch.from_numpy(render(scene)), sources=scene.sources) for scene in scenes]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The networks that turn latents into stems and judge them."""

    vae: VAE
    vocoder: Vocode
    mel: MelSpectrogram
    listener: Listener
    prompts: Prompts
    text_features: Tensor
    latent_length: int

    def kinds_of(self, stems: np.ndarray) -> np.ndarray:
        """Kind that each stem (B, n) sounds like."""
        with torch.no_grad():
            return np.concatenate(
                [self.listener(self.mel(part)).argmax(-1).numpy() for part in torch.from_numpy(stems).split(BATCH)]
            )


Features = Callable[[Tensor, np.ndarray], Tensor]
"""Backbone tokens (B, N, D) and captions (B,) → sync features (B, S*8, D)."""


@torch.no_grad()
def test_tokens(teacher: Teacher, tests: list[TestScene]) -> Tensor:
    """Backbone tokens of the scenes, (scenes, N, D) float32."""
    frames = torch.stack([test.frames for test in tests])
    return torch.cat([backbone_tokens(teacher, part) for part in frames.split(8)])


def make_stems(
    judge: Judge, generator: Generator, features: Features, tests: list[TestScene], tokens: Tensor, seed: int
) -> np.ndarray:
    """Returns (2 * scenes, samples): for every scene, the stem of its first source, then of its second."""
    kinds = np.array([KINDS.index(source.kind) for test in tests for source in test.sources])
    captions = judge.prompts.plain(kinds)

    def stems(rows: slice) -> np.ndarray:
        index = np.arange(len(kinds))[rows]
        with torch.no_grad():
            sync = features(tokens[index // 2], captions[index])
        text = judge.text_features[captions[index]]
        audio = sample_stems(
            generator, judge.vae, judge.vocoder, sync, text, latent_length=judge.latent_length, seed=seed + rows.start
        )
        return audio[:, :SAMPLES]

    return in_batches(len(kinds), BATCH, stems)


def score_stems(judge: Judge, tests: list[TestScene], stems: np.ndarray) -> Score:
    """Scores all stems of a test set together."""
    heard_kinds = judge.kinds_of(stems)
    scores = []
    for index, (audio, heard) in enumerate(zip(stems, heard_kinds, strict=True)):
        sources = tests[index // 2].sources
        target, other = sources[index % 2], sources[1 - index % 2]
        scores.append(score(audio, target.events_s, other.events_s, KINDS[int(heard)] == target.kind))
    return Score.total(scores)


def table(rows: Mapping[str, Mapping[str, Score]]) -> str:
    """Formats a Markdown table with one line per row and test set."""
    lines = [
        "| test set | row | target onsets F1 ↑ | other source's onsets heard ↓ | mean offset, ms ↓ "
        "| right kind of sound ↑ |",
        "|---|---|---|---|---|---|",
    ]
    for test in next(iter(rows.values())):
        for name, scores in rows.items():
            s = scores[test]
            lines.append(f"| {test} | {name} | {s.f1:.2f} | {s.leak:.2f} | {s.offset_ms:.0f} | {s.kind:.2f} |")
    return "\n".join(lines)
