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
from selva_ref.demo.sampling import prepared
from selva_ref.model.generator import Generator
from selva_ref.training.initial import fresh_student
from selva_ref.training.parameters import STUDENT, trainable
from selva_ref.training.paths import STRENGTHS, draw_spans, guided_path, path_loss
from selva_ref.weights.checkpoints import file_sha256

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


def draw_paths(run: DemoRun, examples: Examples, teacher: Generator) -> Paths:
    """Follows the guided generator from noise for random examples. The states are kept for exactly this generator."""
    rng = np.random.default_rng([run.seed, 10])
    rows = rng.permutation(len(examples))[: run.plan.paths]
    captions = run.prompts.draw(rng, examples.kinds[rows])
    strengths = torch.from_numpy(rng.uniform(*STRENGTHS, size=len(rows)).astype(np.float32))
    sync, shape = examples.sync[rows], examples.mean.shape[1:]
    name = f"paths_{file_sha256(run.file('generator'))[:16]}"

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

    return Paths(sync=sync, captions=captions, strengths=strengths, states=run.kept(name, follow))


def train_student(run: DemoRun) -> None:
    """Trains the student on the paths of the guided generator."""
    generator = run.load(selva_ref.build("generator", PRESET), "generator")
    paths, student = draw_paths(run, run.selections(), generator), fresh_student(generator, PRESET, run.seed + 10)
    trainable(student, STUDENT)
    text = run.captions[1]

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        rows = rng.integers(len(paths.captions), size=BATCH)
        t, r = (torch.from_numpy(time)[:, None] for time in draw_spans(rng, BATCH))
        asked = prepared(student, paths.sync[rows], text[paths.captions[rows]], paths.states.shape[2])
        return path_loss(student, paths.states[rows].transpose(0, 1).float(), t, r, paths.strengths[rows], asked)

    run.fit("student", student, loss, run.plan.student)
    run.save(student, "student")
