"""Solvers on flows with known integrals, and the training path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sessions import moving_frames

from selva_ref.model.flow_matching import ab2, adaptive, euler, path
from selva_ref.pipeline import Pipeline


def test_euler_on_a_cubic_has_the_known_sum() -> None:
    n = 25
    end = euler(lambda t, x: torch.full_like(x, 3 * t**2), torch.zeros(2, 3), steps=n)
    # left Riemann sum of 3 t^2: 1 - 3/(2n) + 1/(2n^2)
    assert end.numpy() == pytest.approx(1 - 3 / (2 * n) + 1 / (2 * n**2), abs=1e-6)


def test_euler_of_exponential_growth() -> None:
    end = euler(lambda t, x: x, torch.ones(1), steps=10)
    assert float(end) == pytest.approx(1.1**10, rel=1e-6)


def test_ab2_has_the_known_sum_and_is_of_second_order() -> None:
    n = 25
    end = ab2(lambda t, x: torch.full_like(x, 2 * t), torch.zeros(2, 3), steps=n)
    # 1.5 v_i - 0.5 v_{i-1} is v at the middle of a step, so only the first step, Euler's, is wrong: by 1/n^2
    assert end.numpy() == pytest.approx(1 - 1 / n**2, abs=1e-6)
    ones = torch.ones(1, dtype=torch.float64)
    errors = [abs(float(ab2(lambda t, x: x, ones, steps=steps)) - math.e) for steps in (50, 100)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)


def test_adaptive_reaches_the_integral() -> None:
    assert adaptive(lambda t, x: torch.full_like(x, 3 * t**2), torch.zeros(4)).numpy() == pytest.approx(1, abs=1e-5)
    assert float(adaptive(lambda t, x: x, torch.ones(1))) == pytest.approx(math.e, rel=1e-5)


def test_path_runs_straight_from_noise_to_data() -> None:
    noise, data, t = torch.randn(3, 5, 2), torch.randn(3, 5, 2), torch.tensor([0.0, 0.25, 1.0])
    x, target = path(noise, data, t)
    torch.testing.assert_close(x[0], noise[0])
    torch.testing.assert_close(x[1], 0.75 * noise[1] + 0.25 * data[1])
    torch.testing.assert_close(x[2], data[2])
    # following the constant velocity from any point of the path ends at the data
    torch.testing.assert_close(x + (1 - t)[:, None, None] * target, data)


def test_the_adaptive_solver_agrees_with_many_euler_steps() -> None:
    pipeline, given = Pipeline("demo"), {"duration_s": 0.64, "guidance": 0.0}
    frames = moving_frames(16, pipeline.rules.image_size)
    fine, coarse = (pipeline(frames, "rain", steps=steps, **given) for steps in (100, 10))
    adapted = pipeline(frames, "rain", solver="adaptive", **given)
    assert np.linalg.norm(fine - adapted) < 0.2 * np.linalg.norm(coarse - adapted)
