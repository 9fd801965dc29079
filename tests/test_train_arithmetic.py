"""Compares losses, schedule and averages with closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_samples import LENGTHS, TINY

import selva_ref
from selva_ref.model.generator import Generator
from selva_ref.training.ema import WeightAverages
from selva_ref.training.losses import covered_visual_tokens, distillation_loss, flow_matching_loss
from selva_ref.training.schedule import adamw, learning_rate
from selva_ref.weights import random_weights


@pytest.fixture(scope="module")
def generator() -> Generator:
    network = selva_ref.build("generator", TINY)
    return network.load_official(random_weights.state_dict(network))


def inputs(batch: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    latent = (batch, LENGTHS.latent, TINY.generator.latent_width)
    return {
        "latents_BTZ": torch.randn(latent),
        "sync_BND": torch.randn(batch, LENGTHS.sync, TINY.generator.sync_width),
        "text_BLD": torch.randn(batch, TINY.generator.text_tokens, TINY.generator.text_width),
        "noise": torch.randn(latent),
        "t_B": torch.rand(batch),
        "drop_video_B": torch.zeros(batch, dtype=torch.bool),
        "drop_text_B": torch.zeros(batch, dtype=torch.bool),
    }


def test_distillation_loss() -> None:
    assert distillation_loss(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, 2.0]]])) == 4.5


@torch.no_grad()
def test_flow_matching_loss_is_the_distance_to_the_straight_path(generator: Generator) -> None:
    given = inputs(2)
    noise, data, t = given["noise"], given["latents_BTZ"], given["t_B"]
    clip = generator.empty_clip(2, LENGTHS.visual)
    conditions = generator.prepare(given["sync_BND"], clip, given["text_BLD"], latent_length=LENGTHS.latent)
    x = (1 - t[:, None, None]) * noise + t[:, None, None] * data
    expected = (generator.flow(x, t, conditions) - (data - noise)).square().mean()
    torch.testing.assert_close(flow_matching_loss(generator, **given, visual_tokens=LENGTHS.visual), expected)


@torch.no_grad()
@pytest.mark.parametrize(("dropped", "feature"), [("drop_video_B", "sync_BND"), ("drop_text_B", "text_BLD")])
def test_null_conditions_hide_the_feature_of_their_items_only(generator: Generator, dropped: str, feature: str) -> None:
    given = inputs(1)
    hidden = given | {dropped: torch.tensor([True])}
    other = {feature: torch.randn_like(given[feature])}
    assert flow_matching_loss(generator, **(hidden | other)) == flow_matching_loss(generator, **hidden)
    assert flow_matching_loss(generator, **(given | other)) != flow_matching_loss(generator, **given)
    empty = {"sync_BND": generator.empty_sync(1, LENGTHS.sync), "text_BLD": generator.empty_text(1)}[feature]
    replaced = flow_matching_loss(generator, **(given | {feature: empty}))
    torch.testing.assert_close(flow_matching_loss(generator, **hidden), replaced)


@torch.no_grad()
def test_visual_tokens_count_and_are_dropped_with_the_sync_features(generator: Generator) -> None:
    given, width = inputs(2), TINY.generator.clip_width
    one, other = torch.randn(2, 2, LENGTHS.visual, width)
    loss = flow_matching_loss(generator, **given, clip_BCE=one)
    assert flow_matching_loss(generator, **given, clip_BCE=other) != loss
    no_tokens = flow_matching_loss(generator, **given, visual_tokens=LENGTHS.visual)
    empty = generator.empty_clip(2, LENGTHS.visual)
    torch.testing.assert_close(flow_matching_loss(generator, **given, clip_BCE=empty), no_tokens)
    hidden = given | {"drop_video_B": torch.tensor([True, True])}
    without = flow_matching_loss(generator, **hidden, visual_tokens=LENGTHS.visual)
    torch.testing.assert_close(flow_matching_loss(generator, **hidden, clip_BCE=one), without)


@pytest.mark.parametrize(("duration_s", "segments"), [(0.96, 2), (4.16, 12), (8.0, 24)])
def test_visual_tokens_of_what_segments_cover(duration_s: float, segments: int) -> None:
    assert covered_visual_tokens(8 * segments) == int(8 * duration_s)


def test_schedule() -> None:
    rates = [learning_rate(step, base=1.0, warmup=100, total=1000) for step in range(1000)]
    assert rates[:100] == pytest.approx(np.arange(1, 101) / 100)
    assert rates[100:800] == [1.0] * 700
    assert rates[800:900] == pytest.approx([0.1] * 100)
    assert rates[900:] == pytest.approx([0.01] * 100)


def test_optimiser() -> None:
    (group,) = adamw([nn.Parameter(torch.zeros(1))], 3e-4).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.95), 1e-6)


def walk(averages: WeightAverages, weight: nn.Parameter, values: np.ndarray, every: int) -> None:
    for step, value in enumerate(values, 1):
        weight.data.fill_(float(value))
        averages.update()
        if step % every == 0:
            averages.snapshot()


@pytest.mark.parametrize("width", [0.05, 0.07, 0.1, 0.15])
def test_averages_of_any_width_have_a_power_function_profile(tmp_path: Path, width: float) -> None:
    steps = 2000
    values = np.sin(np.arange(1, steps + 1) / 150)
    weight = nn.Parameter(torch.zeros(2, 3))
    averages = WeightAverages({"a.weight": weight}, tmp_path)
    walk(averages, weight, values, every=100)
    # EDM2, section 3.1: weights t^gamma, whose deviation relative to the run's length is `width`
    gamma = np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max()
    profile = np.arange(1, steps + 1) ** gamma
    expected = (profile * values).sum() / profile.sum()
    average = averages.average(width)
    assert average.keys() == {"a.weight"}
    assert average["a.weight"].shape == (2, 3)
    assert average["a.weight"][0, 0].item() == pytest.approx(expected, abs=0.01)


def test_averages_resume_from_their_state(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 40)
    results = []
    for folder, cut in ((tmp_path / "whole", 40), (tmp_path / "parts", 20)):
        weight = nn.Parameter(torch.zeros(3))
        averages = WeightAverages({"w": weight}, folder)
        walk(averages, weight, values[:cut], every=5)
        if cut < 40:
            state = {name: value.clone() for name, value in averages.state_dict().items()}
            walk(averages, weight, values[cut:] + 9, every=5)  # lost: the state is from before
            averages = WeightAverages({"w": weight}, folder)
            averages.load_state_dict(state)
            assert len(averages.snapshots()) == 8
            walk(averages, weight, values[cut:], every=5)
        results.append(averages.average(0.08)["w"])
    assert torch.equal(*results)
