"""The student's loss: closed forms of a known flow's paths and mean velocities, and which jumps are drawn."""

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
from selva_ref.training.paths import JUMPS, draw_spans, guided_path, path_loss, state_at
from selva_ref.training.validation import EVALUATIONS
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
        return x * (left(r, strength) / left(t, strength) - 1) / (r - t)[:, None, None]


def left(time: Tensor, strength: Tensor) -> Tensor:
    """Share of the noise left at a time, (B, 1, 1): after whole Euler steps and a part of one."""
    whole, rate = (time * STEPS).floor(), (3 * strength - 1) / STEPS
    return ((1 - rate) ** whole * (1 - rate * (time * STEPS - whole)))[:, None, None]


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


def test_between_its_states_a_path_is_straight() -> None:
    states = torch.randn(5, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([[0.0, 0.25, 0.3, 0.75, 0.9, 1.0], [1.0, 0.99, 0.5, 0.375, 0.1, 0.0]])
    made = state_at(states, time)
    assert made.shape == (2, 6, 3, 2)
    for n, k, row, column in np.ndindex(*made.shape):
        expected = np.interp(float(time[n, k]), np.linspace(0, 1, 5), states[:, n, row, column].numpy())
        assert float(made[n, k, row, column]) == pytest.approx(expected, abs=1e-6)
    for k, state in ((0, 0), (1, 1), (3, 3), (5, 4)):
        assert torch.equal(made[0, k], states[state, 0])


def test_the_right_mean_velocity_has_no_loss() -> None:
    strength = torch.tensor([1.5, 3.0])
    t, r = torch.tensor([[0, 0.3, 0.125], [0.9, 0.25, 2 / 3]]), torch.tensor([[0.1, 0.7, 1], [1, 0.5, 0.71]])
    student = cast(AverageGenerator, Decay())
    assert path_loss(student, decaying_states(strength), t, r, strength, conditions(2.0)) < 1e-10


def test_an_error_counts_by_where_the_jump_lands() -> None:
    """All jumps miss by 0.5 in every element: of a stem's n jumps, each costs n / 4."""

    class Missing(Decay):
        def average(self, x: Tensor, t: Tensor, r: Tensor, strength: Tensor, c: Conditions) -> Tensor:
            return super().average(x, t, r, strength, c) + 0.5 / (r - t)[:, None, None]

    strength = torch.tensor([1.5, 3.0])
    t, r = torch.tensor([[0, 0.25, 0], [0.125, 0.5, 0.75]]), torch.tensor([[0.125, 0.5, 1], [0.25, 1, 1]])
    loss = path_loss(cast(AverageGenerator, Missing()), decaying_states(strength), t, r, strength, conditions(2.0))
    assert float(loss) == pytest.approx((8 + 4 + 1 + 8 + 2 + 4) / 4 / 6, rel=1e-5)


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
    t, r = torch.tensor([[0, 0.25, 0.5], [0.75, 0, 1 / 3]]), torch.tensor([[0.25, 1, 0.75], [1, 0.5, 2 / 3]])

    def prepared(n: slice) -> Conditions:
        clip = student.empty_clip(len(sync[n]), LENGTHS.visual)
        return student.prepare(sync[n], clip, text[n], latent_length=LENGTHS.latent)

    with torch.no_grad():
        loss = path_loss(student, states, t, r, strength, prepared(slice(None)))
        parts = [
            path_loss(student, states[:, n], t[n, k], r[n, k], strength[n], prepared(n))
            for n in (slice(0, 1), slice(1, 2))
            for k in (slice(0, 1), slice(1, 2), slice(2, 3))
        ]
    torch.testing.assert_close(loss, torch.stack(parts).mean())


def test_spans_are_the_jumps_of_stems() -> None:
    t, r = draw_spans(np.random.default_rng(0), 40_000)
    assert (t.dtype, r.dtype) == (np.float32, np.float32)
    assert sum(JUMPS.values()) == pytest.approx(1)
    assert max(JUMPS, key=lambda n: JUMPS[n]) == EVALUATIONS
    for n, probability in JUMPS.items():
        for k in range(n):
            jumps = (t == np.float32(k / n)) & (r == np.float32((k + 1) / n))
            assert np.mean(jumps) == pytest.approx(probability / n, abs=0.006)
