"""The student's arithmetic: closed forms of mean velocities, and that it starts as the generator."""

import pytest
import torch

from selva_ref.model.average import AverageGenerator, jumps
from selva_ref.model.generator import Generator
from selva_ref.model.presets import PRESETS
from selva_ref.weights import random_weights


def decay(x: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Mean velocity of dx/dt = -2x: the solution is x e^(-2(r - t))."""
    span = (r - t)[:, None, None]
    return torch.where(span.abs() < 1e-6, -2 * x, x * torch.expm1(-2 * span) / span)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_exact_mean_velocities_reach_the_end_in_any_number_of_steps(steps: int) -> None:
    noise = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(jumps(decay, noise, steps=steps), noise * torch.tensor(-2.0, dtype=torch.float64).exp())


def test_it_starts_as_the_generator() -> None:
    config = PRESETS["demo"].generator
    generator = Generator(config).eval()
    weights = random_weights.state_dict(generator)
    generator.load_official(weights)
    student = AverageGenerator(config).eval()
    new = student.load_state_dict(weights, strict=False)
    assert {name.split(".")[0] for name in new.missing_keys} == {"span_embed", "strength_embed"}
    with torch.no_grad():
        c = generator.prepare(
            torch.randn(2, 96, config.sync_width),
            generator.empty_clip(2, 33),
            generator.empty_text(2),
            latent_length=130,
        )
        x, t = torch.randn(2, 130, config.latent_width), torch.tensor([0.2, 0.7])
        made = student.average(x, t, torch.tensor([0.6, 0.7]), torch.tensor([4.5, 1.0]), c)
        torch.testing.assert_close(made, generator.flow(x, t, c))
        student.span_embed.mlp[-1].weight.fill_(0.1)
        assert (student.average(x, t, t + 0.1, t, c) - made).abs().max() > 1e-3
