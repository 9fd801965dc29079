"""The exported step computes modulations once per row, the reference once per latent vector; the flow is the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from selva_bundle.lengths import latent_positions, sync_rows, visual_positions
from selva_export.graphs import GuidedStep, PrepareConditions, empty_sync_rows
from selva_export.rewrites import rewrite
from selva_ref import get_preset
from selva_ref.pipeline import sequence_rules
from selva_ref.weights.loading import load_part

DEMO = get_preset("demo")
EVEN = replace(DEMO, generator=replace(DEMO.generator, frames_per_latent=None))
ROUNDING = 5e-6
"""Largest relative error of a velocity: float32 sums in another order, at most 2.4e-6 here. A wrong row gives 6e-2."""


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("segments", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["demo", "small_16k", "large_44k_v2"])
def test_empty_features_have_32_rows_in_a_clip_of_any_length(name: str, segments: int) -> None:
    narrow = replace(get_preset(name).generator, width=64, heads=1, sync_width=32, joint_blocks=1, fused_blocks=1)
    generator = load_part("generator", replace(get_preset(name), generator=narrow), None)
    first, middle, last, only = empty_sync_rows(generator).split(8)
    true = generator.project_sync(generator.empty_sync(1, 8 * segments))[0]
    by_segment = [only] if segments == 1 else [first, *[middle] * (segments - 2), last]
    torch.testing.assert_close(torch.cat(by_segment), true, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(first, middle)
    assert not torch.allclose(last, only)


@pytest.mark.parametrize("preset", [DEMO, EVEN], ids=["shown", "even"])
@pytest.mark.parametrize("duration_s", [0.64, 0.96, 1.28, 4.16])
@pytest.mark.parametrize(("stems", "negative"), [(1, False), (3, False), (2, True)])
def test_a_step_is_the_guided_flow(preset, duration_s: float, stems: int, negative: bool) -> None:
    generator = load_part("generator", preset, None)
    rules = sequence_rules(preset)
    lengths = rules.lengths(duration_s)
    draw = torch.Generator().manual_seed(stems)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    sync = drawn(stems, lengths.sync, preset.generator.sync_width)
    tokens = preset.generator.text_tokens, preset.generator.text_width
    text, against = drawn(stems, *tokens), drawn(1, *tokens)
    latents = drawn(stems, lengths.latent, preset.generator.latent_width)
    places = (torch.from_numpy(make(lengths)) for make in (latent_positions, visual_positions))
    conditions = PrepareConditions(generator)(sync, text, against, torch.tensor([negative]), *places)
    t, dt, scale = (torch.tensor([value]) for value in (0.37, 1.0, 4.5))
    rows = torch.from_numpy(sync_rows(rules, lengths, stems))
    forms = (GuidedStep(generator), rewrite(GuidedStep(load_part("generator", preset, None))))
    steps = [form(latents, t, dt, scale, rows, *conditions) - latents for form in forms]

    clip = generator.empty_clip(1, lengths.visual)
    for i in range(stems):
        c = generator.prepare(sync[i : i + 1], clip, text[i : i + 1], latent_length=lengths.latent)
        empty = generator.prepare_empty(c, sync_length=lengths.sync, negative_text=against if negative else None)
        v = generator.guided_flow(latents[i : i + 1], t, c, empty, 4.5)[0]
        assert all(float((step[i] - v).norm() / v.norm()) <= ROUNDING for step in steps)


def test_modulations_are_computed_once_a_row() -> None:
    generator = load_part("generator", DEMO, None)
    step = rewrite(GuidedStep(generator))
    lengths = sequence_rules(DEMO).lengths(4.16)
    seen = []
    blocks = [*(block.latent_block for block in generator.joint_blocks), *generator.fused_blocks]
    hooks = [b.adaLN_modulation.register_forward_hook(lambda _, given, out: seen.append(out.shape)) for b in blocks]
    width, head = DEMO.generator.width, DEMO.generator.width // DEMO.generator.heads
    step(
        torch.zeros(2, lengths.latent, DEMO.generator.latent_width),
        *torch.ones(3, 1),
        torch.from_numpy(sync_rows(sequence_rules(DEMO), lengths, 2)),
        torch.zeros(2, lengths.sync, width),
        torch.zeros(4, lengths.visual, width),
        torch.zeros(4, DEMO.generator.text_tokens, width),
        torch.zeros(4, width),
        torch.zeros(lengths.latent, 2, head // 2),
        torch.zeros(lengths.visual, 2, head // 2),
    )
    for hook in hooks:
        hook.remove()
    assert np.unique(seen, axis=0).tolist() == [[2 * lengths.sync + 32, 6 * width]]
    assert len(seen) == len(blocks)
