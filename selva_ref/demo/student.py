"""The demo's student: it learns the paths on which the guided generator goes from noise to sound.

The paths are computed once and stored, so that a training step only runs the student.
Shapes: N paths, T latent length, Z latent width, S*8 sync features, D their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import selva_ref
from selva_ref.demo.models.generator import Examples
from selva_ref.demo.run import BATCH, PRESET, DemoRun
from selva_ref.model.average import AverageGenerator
from selva_ref.model.generator import Conditions, Generator
from selva_ref.training.losses import covered_visual_tokens
from selva_ref.training.parameters import STUDENT, trainable
from selva_ref.training.paths import STRENGTHS, draw_spans, guided_path, path_loss
from selva_ref.weights.checkpoints import read_checkpoint

TEACHER_STEPS = 25
"""Euler steps of a path."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Paths from noise to sound, and what asked for them."""

    sync: Tensor
    """(N, S*8, D) sync features."""
    captions: np.ndarray
    """(N,) indices of the captions."""
    strengths: Tensor
    """(N,) guidance strengths."""
    states: Tensor
    """(N, TEACHER_STEPS + 1, T, Z) float16 states, from noise to the normalised latent."""


def draw_paths(run: DemoRun, examples: Examples) -> Paths:
    """Follows the guided generator from noise for random examples."""
    rng = np.random.default_rng([run.seed, 10])
    rows = rng.permutation(len(examples))[: run.plan.paths]
    captions = run.prompts.draw(rng, examples.kinds[rows])
    strengths = torch.from_numpy(rng.uniform(*STRENGTHS, size=len(rows)).astype(np.float32))
    sync, shape = examples.sync[rows], examples.mean.shape[1:]
    teacher = run.load(selva_ref.build("generator", PRESET), "generator")

    def follow() -> Tensor:
        noise = torch.from_numpy(rng.standard_normal((len(rows), *shape), dtype=np.float32))
        parts = []
        for part in torch.arange(len(rows)).split(BATCH):
            asked = prepared(teacher, sync[part], run.captions[1][captions[part]], shape[0])
            empty = teacher.prepare_empty(asked, sync_length=sync.shape[1])
            with torch.autocast("cpu", torch.bfloat16, enabled=run.plan.student.bf16):
                states = guided_path(teacher, noise[part], strengths[part], asked, empty, TEACHER_STEPS)
            parts.append(states.transpose(0, 1).half())
        return torch.cat(parts)

    return Paths(sync=sync, captions=captions, strengths=strengths, states=run.kept("paths", follow))


def prepared(generator: Generator, sync_BND: Tensor, text_BLD: Tensor, latent_length: int) -> Conditions:
    """Conditions without visual tokens."""
    clip = generator.empty_clip(len(sync_BND), covered_visual_tokens(sync_BND.shape[1]))
    return generator.prepare(sync_BND, clip, text_BLD, latent_length=latent_length)


def start_student(run: DemoRun) -> AverageGenerator:
    """A student that does what the generator does without guidance."""
    student = selva_ref.build("student", PRESET)
    student.load_state_dict(read_checkpoint(run.file("generator")), strict=False)
    return student


def train_student(run: DemoRun) -> None:
    """Trains the student on the paths of the guided generator."""
    torch.manual_seed(run.seed + 10)
    paths, student = draw_paths(run, run.selections()), start_student(run)
    trainable(student, STUDENT)
    text = run.captions[1]

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        rows = rng.integers(len(paths.captions), size=BATCH)
        t, r = (torch.from_numpy(time)[:, None] for time in draw_spans(rng, BATCH))
        asked = prepared(student, paths.sync[rows], text[paths.captions[rows]], paths.states.shape[2])
        return path_loss(student, paths.states[rows].transpose(0, 1).float(), t, r, paths.strengths[rows], asked)

    run.fit("student", student, loss, run.plan.student)
    run.save(student, "student")
