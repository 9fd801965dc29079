"""Mixing, and random numbers that depend only on seed, step and item."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from train_samples import DURATION_S, LABELS, LENGTHS, RULES, PaintedClips, write_features

from selva_ref.training.data.store import Features
from selva_ref.training.errors import TrainingError
from selva_ref.training.examples.draws import item_at, item_generator, split
from selva_ref.training.examples.mixed import distillation_targets, flow_targets, student_targets
from selva_ref.training.examples.mixing import different_label, draw_share, side_by_side
from selva_ref.training.paths import JUMPS
from selva_ref.training.settings import RunSettings
from selva_ref.training.world import World

SETTINGS = RunSettings(
    stage="stage1", preset="demo", data_sha256="", start_sha256="", steps=6, batch=4, holdout=2, warmup=2
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return Features(write_features(tmp_path_factory.mktemp("data") / "features"))


@pytest.mark.parametrize("target_left", [True, False])
@pytest.mark.parametrize(("share", "columns"), [(0.05, 1), (0.37, 7), (0.5, 10), (0.95, 19)])
def test_side_by_side(share: float, columns: int, target_left: bool) -> None:
    target, pair = (torch.full((2, 3, 8, 20), value, dtype=torch.uint8) for value in (10, 200))
    mixed = side_by_side(target, pair, share, target_left)
    assert mixed.shape == target.shape
    assert mixed.dtype == torch.uint8
    row = torch.tensor([10] * columns + [200] * (20 - columns), dtype=torch.uint8)
    expected = row if target_left else row.flip(0)
    assert torch.equal(mixed, expected.expand_as(mixed))


def test_squeezing_keeps_the_whole_picture() -> None:
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(1, 3, 8, 64)
    mixed = side_by_side(ramp, torch.zeros_like(ramp), 0.5, target_left=True)[0, 0, 0, :32].float()
    torch.testing.assert_close(mixed, torch.linspace(2, 253, 32), atol=3, rtol=0)


def test_shares_are_beta_distributed_and_never_empty() -> None:
    rng = np.random.default_rng(0)
    uniform, middling = ([draw_share(rng, alpha) for _ in range(4000)] for alpha in (1.0, 4.0))
    assert min(uniform) == 0.05
    assert max(uniform) == 0.95
    assert np.mean(uniform) == pytest.approx(0.5, abs=0.02)
    assert np.std(middling) == pytest.approx((1 / (4 * 9)) ** 0.5, rel=0.05)  # of Beta(4, 4)


def test_pairs_have_different_labels_each_equally_likely() -> None:
    rng = np.random.default_rng(0)
    labels = ["a", "b", "a", "c", "c"]
    drawn = [different_label(labels, 2, rng) for _ in range(3000)]
    assert set(drawn) == {1, 3, 4}
    assert np.bincount(drawn)[[1, 3, 4]] / 3000 == pytest.approx([1 / 3] * 3, abs=0.04)
    assert different_label(["a"] * 10_000 + ["b"], 0, rng) == 10_000
    with pytest.raises(ValueError, match="every clip is labelled 'a'"):
        different_label(["a", "a"], 0, rng)


def test_every_clip_once_an_epoch_in_another_order() -> None:
    epochs = [[item_at(3, position, 7) for position in range(7 * epoch, 7 * epoch + 7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    train, held_out = split(3, 10, 4)
    assert sorted(train + held_out) == list(range(10))
    assert len(held_out) == 4


def test_draws_of_different_items_and_seeds_differ() -> None:
    first = {item_generator(*place).random() for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))}
    assert len(first) == 4


def test_an_example_does_not_depend_on_its_batch(features: Features) -> None:
    clips = PaintedClips(features, RULES, SETTINGS, flow_targets)
    whole = clips[[(5, index) for index in range(4)]]
    for index in range(4):
        alone = clips[[(5, index)]]
        assert all(torch.equal(whole[name][index], alone[name][0]) for name in whole)


class FlatClips(PaintedClips):
    """Every frame of clip `row` has the single shade 10 (row + 1), so that a mix shows what it is made of."""

    def _frames(self, row: int) -> torch.Tensor:
        frames = super()._frames(row)
        return frames.new_full(frames.shape, 10 * (row + 1))


def test_mixes_are_made_of_the_target_and_a_clip_of_another_label(features: Features) -> None:
    clips = FlatClips(features, RULES, SETTINGS, distillation_targets)
    teachers = [torch.from_numpy(features.teacher(row)) for row in clips.rows]
    seen, on_left, shares = [], [], []
    for step in range(60):
        batch = clips[[(step, index) for index in range(SETTINGS.batch)]]
        for picture, teacher in zip(batch["frames"], batch["teacher"], strict=True):
            (target,) = (row for row, known in zip(clips.rows, teachers, strict=True) if torch.equal(known, teacher))
            shades = picture[0, 0, 0]
            assert torch.equal(picture, shades.expand_as(picture))
            own = shades == 10 * (target + 1)
            (other,) = {int(shade) // 10 - 1 for shade in shades[~own]}
            assert other in clips.rows
            assert features.clip(other).label != features.clip(target).label
            assert int((own[1:] != own[:-1]).sum()) == 1  # one edge between the two
            seen.append(target)
            on_left.append(bool(own[0]))
            shares.append(float(own.float().mean()))
    epochs = np.reshape(seen, (-1, len(clips.rows)))
    assert all(sorted(epoch) == sorted(clips.rows) for epoch in epochs)
    assert np.mean(on_left) == pytest.approx(0.5, abs=0.1)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)  # of Beta(1, 1)
    assert np.std(shares) == pytest.approx(12**-0.5, abs=0.04)
    assert abs(np.corrcoef(on_left, shares)[0, 1]) < 0.2


def test_flow_targets_follow_their_distributions(features: Features) -> None:
    rng = np.random.default_rng(1)
    drawn = [flow_targets(features, 0, None, rng) for _ in range(2000)]
    mean, deviation = features.posterior(0)
    logits = [np.log(one["t"] / (1 - one["t"])) for one in drawn]
    assert np.mean(logits) == pytest.approx(0, abs=0.1)
    assert np.std(logits) == pytest.approx(1, abs=0.1)
    for name in ("drop_video", "drop_text"):
        assert np.mean([one[name] for one in drawn]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([one["drop_video"] & one["drop_text"] for one in drawn]) == pytest.approx(0.01, abs=0.01)
    standard = np.stack([(one["latent"] - mean) / deviation for one in drawn])
    assert np.abs(standard.mean(0)).max() < 0.15
    assert np.abs(standard.std(0) - 1).max() < 0.15


def test_student_targets_follow_their_distributions(features: Features) -> None:
    rng = np.random.default_rng(1)
    drawn = [student_targets(features, 0, None, rng, spans=3) for _ in range(2000)]
    strengths = [one["strength"] for one in drawn]
    assert (min(strengths), max(strengths)) == pytest.approx((1, 7), abs=0.05)
    assert np.mean(strengths) == pytest.approx(4, abs=0.15)
    assert np.std(strengths) == pytest.approx(6 / 12**0.5, abs=0.1)
    assert {one["t"].shape + one["r"].shape for one in drawn} == {(3, 3)}
    lengths = np.concatenate([one["r"] - one["t"] for one in drawn])
    assert np.mean(np.isclose(lengths, 1 / 4)) == pytest.approx(JUMPS[4], abs=0.03)
    noise = np.stack([one["noise"] for one in drawn])
    assert np.abs(noise.mean(0)).max() < 0.15
    assert np.abs(noise.std(0) - 1).max() < 0.15
    absent = student_targets(features, 0, 1, rng, spans=3)
    for row, asked in ((0, drawn[0]), (1, absent)):
        assert np.array_equal(asked["clip_text"], features.text(row).clip)
        assert np.array_equal(asked["t5"], features.text(row).t5)


def test_an_absent_text_is_of_a_third_label_and_asks_for_silence(tmp_path) -> None:
    features = Features(write_features(tmp_path / "features", labels=(*LABELS, "violin")))
    silence = np.full((LENGTHS.latent, RULES.latent_width), 7.0, np.float32)
    targets = partial(flow_targets, silence=(silence, np.zeros_like(silence)))
    clips = FlatClips(features, RULES, replace(SETTINGS, absent=0.3), targets)
    texts = {label: torch.from_numpy(features.text(row).clip) for row, label in enumerate((*LABELS, "violin"))}
    absent = []
    for step in range(80):
        batch = clips[[(step, index) for index in range(SETTINGS.batch)]]
        for row, picture in enumerate(batch["frames"]):
            shown = {features.clip(int(shade) // 10 - 1).label for shade in picture[0, 0, 0].unique()}
            (asked,) = (label for label, text in texts.items() if torch.equal(text, batch["clip_text"][row]))
            absent.append(bool(batch["absent"][row]))
            assert (asked in shown) != absent[-1]
            assert bool((batch["latent"][row] == 7).all()) == absent[-1]
    assert np.mean(absent) == pytest.approx(0.3, abs=0.08)
    assert not any(clips.held_out(index)[0]["absent"].item() for index in range(2))


def test_an_absent_text_needs_a_third_label(features: Features) -> None:
    with pytest.raises(TrainingError, match="three labels"):
        PaintedClips(features, RULES, replace(SETTINGS, absent=0.1), flow_targets)


def test_held_out_clips_are_never_trained_with(features: Features) -> None:
    clips = PaintedClips(features, RULES, SETTINGS, distillation_targets)
    assert len(clips.held_out_rows) == 2
    assert not set(clips.held_out_rows) & set(clips.rows)
    batch, label = clips.held_out(1)
    assert label in LABELS
    assert torch.equal(batch["frames"], clips.held_out(1)[0]["frames"])
    assert batch["frames"].shape == (1, 24, 3, RULES.image_size, RULES.image_size)
    assert features.description.duration_s == DURATION_S


def test_processes_and_parts_share_a_batch() -> None:
    shares = [World(rank=rank, size=3, device=torch.device("cpu")).share(12, 2) for rank in range(3)]
    assert [len(part) for share in shares for part in share] == [2] * 6
    assert sorted(index for share in shares for part in share for index in part) == list(range(12))
    with pytest.raises(TrainingError, match="batch 10: must be a multiple of 6"):
        World(rank=0, size=3, device=torch.device("cpu")).share(10, 2)
