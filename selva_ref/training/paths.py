"""The loss of the student: the mean velocities along the guided teacher's own paths.

The teacher goes from noise to data once, with guidance and without a gradient. Between any two of the states it passes,
the mean velocity is known, and the student learns it by regression. So no target comes from the student itself, and a
run needs no state besides the optimiser's. (Regression on the end of a teacher's path: arXiv 2101.02388. Between any
two times: flow map matching, arXiv 2406.07507. Mean velocities with the guidance inside: arXiv 2507.16884.)
Shapes: N states of a path (one more than its steps), B batch, K spans of each example, T latent length, Z latent width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selva_ref.model.average import AverageGenerator
from selva_ref.model.generator import Conditions, Generator

STRENGTHS = (1.0, 7.0)
"""Range that the guidance strength is drawn from, uniformly."""
NEIGHBOURS = 0.5
"""Probability that a span is a single step of the path: there the mean velocity is the velocity itself."""


@torch.no_grad()
def guided_path(
    teacher: Generator, noise_BTZ: Tensor, strength_B: Tensor, conditions: Conditions, empty: Conditions, steps: int
) -> Tensor:
    """States (N, B, T, Z) of s v(conditions) + (1 - s) v(empty) from noise to data in equal Euler steps.

    Each example has its own guidance strength s. State i is at time i / steps.
    """
    s, x = strength_B[:, None, None], noise_BTZ
    states = [x]
    for i in range(steps):
        t = torch.full((1,), i / steps, device=x.device)
        x = x + (s * teacher.flow(x, t, conditions) + (1 - s) * teacher.flow(x, t, empty)) / steps
        states.append(x)
    return torch.stack(states)


def draw_spans(rng: np.random.Generator, count: int, steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws `count` pairs of states i < j of a path of `steps` steps; both (count,).

    Half of them are neighbours, j = i + 1. The others are drawn from all steps (steps + 1) / 2 pairs alike.
    """
    first, last = np.triu_indices(steps + 1, k=1)
    single, pair = rng.integers(steps, size=count), rng.integers(len(first), size=count)
    near = rng.random(count) < NEIGHBOURS
    return np.where(near, single, first[pair]), np.where(near, single + 1, last[pair])


def path_loss(
    student: AverageGenerator, states_NBTZ: Tensor, i_BK: Tensor, j_BK: Tensor, strength_B: Tensor, c: Conditions
) -> Tensor:
    """Mean of |u(x_i, t_i, t_j, s) - (x_j - x_i) / (t_j - t_i)|^2 over every example's spans.

    Args:
        states_NBTZ: the states of `guided_path`, (N, B, T, Z).
        i_BK, j_BK: int64, where each span starts and ends, as from `draw_spans`.
        c: of the B examples, from the student's own `prepare`, whose projection of the sync features is trained too.
    """
    steps, spans = len(states_NBTZ) - 1, i_BK.shape[1]
    examples = torch.arange(len(i_BK), device=i_BK.device)[:, None]
    start, end = (states_NBTZ[index, examples].flatten(0, 1) for index in (i_BK, j_BK))
    t, r = (index.flatten().float() / steps for index in (i_BK, j_BK))
    made = student.average(start, t, r, strength_B.repeat_interleave(spans), _repeated(c, spans))
    return F.mse_loss(made, (end - start) / (r - t)[:, None, None])


def _repeated(c: Conditions, times: int) -> Conditions:
    """The conditions of every example `times` times, one after the other."""
    sync, clip, text, pooled = (f.repeat_interleave(times, 0) for f in (c.sync_f, c.clip_f, c.text_f, c.global_f))
    return replace(c, sync_f=sync, clip_f=clip, text_f=text, global_f=pooled)
