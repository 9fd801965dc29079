"""The loss of the student: the mean velocities along the guided teacher's own paths.

The teacher goes from noise to data once, with guidance and without a gradient. Between any two times of its path, the
mean velocity is known, and the student learns it by regression. So no target comes from the student itself, and a
run needs no state besides the optimiser's. (Regression on the end of a teacher's path: arXiv 2101.02388. Between any
two times: flow map matching, arXiv 2406.07507. Mean velocities with the guidance inside: arXiv 2507.16884.)
Shapes: N states of a path (one more than its steps), B batch, K spans of each example, T latent length, Z latent width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selva_ref.model.average import AverageGenerator
from selva_ref.model.generator import Conditions, Generator

STRENGTHS = (1.0, 7.0)
"""Range that the guidance strength is drawn from, uniformly."""
JUMPS = {1: 0.10, 2: 0.15, 3: 0.05, 4: 0.40, 5: 0.05, 6: 0.05, 7: 0.05, 8: 0.15}
"""Probability that a drawn span is a jump of a stem made in that many. Most stems take 4.

These are the only jumps that a stem takes, so the student learns no others.
"""


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


def draw_spans(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draws `count` jumps of stems: the times t < r between which each goes, both (count,).

    A jump is any of its stem's n alike: t = k / n and r = (k + 1) / n. `JUMPS` says how often a stem takes n.
    """
    n = rng.choice(list(JUMPS), size=count, p=list(JUMPS.values()))
    k = rng.integers(n)
    return (k / n).astype(np.float32), ((k + 1) / n).astype(np.float32)


def state_at(states_NBTZ: Tensor, time_BK: Tensor) -> Tensor:
    """States (B, K, T, Z) of every example at its own times, from 0 to 1.

    Euler steps are straight, so between two states of `guided_path` the path is the line through them.
    """
    steps = len(states_NBTZ) - 1
    place = time_BK * steps
    before = place.long().clamp(max=steps - 1)
    examples = torch.arange(len(time_BK), device=time_BK.device)[:, None]
    share = (place - before)[:, :, None, None]
    return torch.lerp(states_NBTZ[before, examples], states_NBTZ[before + 1, examples], share)


def path_loss(
    student: AverageGenerator, states_NBTZ: Tensor, t_BK: Tensor, r_BK: Tensor, strength_B: Tensor, c: Conditions
) -> Tensor:
    """Mean of (r - t) |u(x_t, t, r, s) - (x_r - x_t) / (r - t)|^2 over every example's spans.

    This is |x_t + (r - t) u - x_r|^2 / (r - t): an error counts by where the jump lands. For n jumps that miss
    independently of each other, the mean is the squared error of the whole stem, whatever n. Without the factor, it
    would be n times that, and short jumps would outweigh long ones.

    Args:
        states_NBTZ: the states of `guided_path`, (N, B, T, Z).
        t_BK, r_BK: the times between which each span goes, t < r, as from `draw_spans`.
        c: of the B examples, from the student's own `prepare`, whose projection of the sync features is trained too.
    """
    spans = t_BK.shape[1]
    start, end = (state_at(states_NBTZ, time).flatten(0, 1) for time in (t_BK, r_BK))
    t, r = t_BK.flatten(), r_BK.flatten()
    length = (r - t)[:, None, None]
    made = student.average(start, t, r, strength_B.repeat_interleave(spans), _repeated(c, spans))
    return (length * (made - (end - start) / length).square()).mean()


def _repeated(c: Conditions, times: int) -> Conditions:
    """The conditions of every example `times` times, one after the other."""
    sync, clip, text, pooled = (f.repeat_interleave(times, 0) for f in (c.sync_f, c.clip_f, c.text_f, c.global_f))
    return replace(c, sync_f=sync, clip_f=clip, text_f=text, global_f=pooled)
