"""The student's loss: closed forms of a known flow's paths and mean velocities, and how spans are drawn."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from train_samples import LENGTHS, TINY

import selva_ref
from selva_ref.model.average import AverageGenerator
from selva_ref.model.generator import Conditions, Generator
from selva_ref.training.paths import draw_spans, guided_path, path_loss
from selva_ref.weights import random_weights

STEPS = 10


def conditions(rate: float, batch: int = 2) -> Conditions:
    """Conditions that only hold a rate, for the flows below."""
    f, rope = torch.full((batch, 1, 1), rate), torch.zeros(1, 2, 1)
    return Conditions(sync_f=f, clip_f=f, text_f=f, global_f=f, latent_rope=rope, clip_rope=rope)


class Decay:
    """dx/dt = -rate x. An Euler step multiplies by 1 - rate / steps."""

    def flow(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        return -c.sync_f * x

    def average(self, x: Tensor, t: Tensor, r: Tensor, strength: Tensor, c: Conditions) -> Tensor:
        """Mean velocity of the path in Euler steps, guided between the rates 2 and -1: 2 s - (1 - s)."""
        rate, span = (3 * strength - 1)[:, None, None], (r - t)[:, None, None]
        return x * ((1 - rate / STEPS) ** (span * STEPS) - 1) / span


def decaying_states(strength: Tensor) -> Tensor:
    noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    teacher = cast(Generator, Decay())
    return guided_path(teacher, noise, strength, conditions(2.0), conditions(-1.0), STEPS)


def test_guided_path_is_the_guided_flow_s_own() -> None:
    strength = torch.tensor([1.0, 3.0])
    states = decaying_states(strength)
    rate = (3 * strength - 1)[:, None, None]
    assert len(states) == STEPS + 1
    for i, state in enumerate(states):
        torch.testing.assert_close(state, states[0] * (1 - rate / STEPS) ** i)


def test_the_time_of_a_state_is_its_share_of_the_path() -> None:
    class Clock:
        def flow(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
            return t[:, None, None].expand_as(x)

    noise = torch.zeros(2, 5, 3)
    states = guided_path(cast(Generator, Clock()), noise, torch.ones(2), conditions(0.0), conditions(0.0), STEPS)
    expected = torch.tensor([sum(range(i)) / STEPS**2 for i in range(STEPS + 1)])
    torch.testing.assert_close(states, expected[:, None, None, None].expand_as(states))


def test_the_right_mean_velocity_has_no_loss_and_others_have_theirs() -> None:
    strength = torch.tensor([1.5, 3.0])
    states = decaying_states(strength)
    i, j = torch.tensor([[0, 3, 0], [9, 1, 2]]), torch.tensor([[1, 7, 10], [10, 8, 4]])
    student = cast(AverageGenerator, Decay())
    assert path_loss(student, states, i, j, strength, conditions(2.0)) < 1e-10

    class Still:
        def average(self, x: Tensor, *_: object) -> Tensor:
            return torch.zeros_like(x)

    means = [(states[b, n] - states[a, n]) * STEPS / (b - a) for n in (0, 1) for a, b in zip(i[n], j[n], strict=True)]
    loss = path_loss(cast(AverageGenerator, Still()), states, i, j, strength, conditions(2.0))
    torch.testing.assert_close(loss, torch.stack(means).square().mean())


def test_each_span_is_asked_for_with_its_own_example_s_conditions() -> None:
    """The same loss as one example and one span at a time, with a real network."""
    student, c = selva_ref.build("student", TINY), TINY.generator
    student.load_official(random_weights.state_dict(student))
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    sync, text = normal(2, LENGTHS.sync, c.sync_width), normal(2, c.text_tokens, c.text_width)
    states = normal(5, 2, LENGTHS.latent, c.latent_width)
    strength = torch.tensor([1.0, 6.0])
    i, j = torch.tensor([[0, 1, 2], [3, 0, 1]]), torch.tensor([[1, 4, 3], [4, 4, 3]])

    def prepared(n: slice) -> Conditions:
        clip = student.empty_clip(len(sync[n]), LENGTHS.visual)
        return student.prepare(sync[n], clip, text[n], latent_length=LENGTHS.latent)

    with torch.no_grad():
        loss = path_loss(student, states, i, j, strength, prepared(slice(None)))
        parts = [
            path_loss(student, states[:, n], i[n, k], j[n, k], strength[n], prepared(n))
            for n in (slice(0, 1), slice(1, 2))
            for k in (slice(0, 1), slice(1, 2), slice(2, 3))
        ]
    torch.testing.assert_close(loss, torch.stack(parts).mean())


@pytest.mark.parametrize("steps", [1, 4])
def test_half_of_the_spans_are_neighbours_and_the_others_any(steps: int) -> None:
    i, j = draw_spans(np.random.default_rng(0), 40_000, steps)
    assert i.min() == 0
    assert (i < j).all()
    assert j.max() == steps
    pairs = steps * (steps + 1) // 2
    for first in range(steps):
        for last in range(first + 1, steps + 1):
            expected = 0.5 / pairs + (0.5 / steps if last == first + 1 else 0.0)
            assert np.mean((i == first) & (j == last)) == pytest.approx(expected, abs=0.01)
