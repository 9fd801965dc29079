"""The student's stage from official weights: how it starts, what it learns, what is heard, and which files remain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from train_samples import LENGTHS, RULES, TINY, PaintedClips, events, write_checkpoints, write_features

import selva_ref
from selva_ref.errors import CheckpointNotFoundError
from selva_ref.model.average import AverageGenerator
from selva_ref.model.presets import PRESETS
from selva_ref.pipeline import Pipeline
from selva_ref.training import run
from selva_ref.training.data.store import Features
from selva_ref.training.errors import TrainingError
from selva_ref.training.examples.mixed import Batch, student_targets
from selva_ref.training.initial import fresh_student
from selva_ref.training.paths import guided_path, state_at
from selva_ref.training.run import StageRequest, distill
from selva_ref.training.schedule import adamw
from selva_ref.training.settings import RunPlace, RunSettings
from selva_ref.training.stages import PathRegression, conditions, guidance, selected
from selva_ref.training.validation import stem_latents
from selva_ref.weights import random_weights
from selva_ref.weights.loading import load_part

STEPS, SPANS = 4, 2
STUDENT_FILE, ENCODER = "student_demo.safetensors", "video_encoder_demo.safetensors"


@pytest.fixture(autouse=True, scope="module")
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "demo", TINY)
        patch.setattr(run, "MixedClips", PaintedClips)
        yield


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> StageRequest:
    """Checkpoints as published: a trained generator and encoder are among them."""
    folder = tmp_path_factory.mktemp("distill")
    checkpoints = write_checkpoints(folder / "checkpoints", TINY)
    (checkpoints / "base.safetensors").rename(checkpoints / "generator_demo.safetensors")
    (checkpoints / STUDENT_FILE).unlink()
    encoder = random_weights.state_dict(selva_ref.build("video_encoder", TINY))
    save_file({name: value.contiguous().clone() for name, value in encoder.items()}, checkpoints / ENCODER)
    return StageRequest(
        data=write_features(folder / "data"),
        checkpoints=checkpoints,
        steps=2,
        batch=2,
        holdout=1,
        warmup=1,
        device="cpu",
        teacher_steps=STEPS,
        spans=SPANS,
    )


@pytest.fixture(scope="module")
def stage(request_: StageRequest) -> PathRegression:
    teacher, encoder = (load_part(part, TINY, request_.checkpoints) for part in ("generator", "video_encoder"))
    student = fresh_student(teacher, TINY, seed=0)
    return PathRegression(student, teacher, encoder, steps=STEPS, visual_tokens=LENGTHS.visual)


@pytest.fixture(scope="module")
def batch(request_: StageRequest) -> Batch:
    settings = RunSettings(
        stage="distill", preset="demo", data_sha256="", start_sha256="", steps=2, batch=4, holdout=1, warmup=1
    )
    targets = partial(student_targets, spans=SPANS)
    batch = PaintedClips(Features(request_.data), RULES, settings, targets)[[(0, index) for index in range(4)]]
    assert isinstance(batch, dict)
    return batch


@torch.no_grad()
def test_the_first_loss_is_that_of_the_generator_without_guidance(stage: PathRegression, batch: Batch) -> None:
    """Also that the steps are the stage's and the spans, strengths and noise the batch's, one span at a time."""
    sync = selected(stage.encoder, batch)
    real, empty = guidance(stage.teacher, sync, batch, LENGTHS.visual)
    states = guided_path(stage.teacher, batch["noise"], batch["strength"], real, empty, STEPS)
    parts = []
    for k in range(SPANS):
        t, r = batch["t"][:, k], batch["r"][:, k]
        start, end = (state_at(states, time[:, None])[:, 0] for time in (t, r))
        length = (r - t)[:, None, None]
        landed = start + length * stage.teacher.flow(start, t, real)
        parts.append(((landed - end).square() / length).mean())
    torch.testing.assert_close(stage(batch), torch.stack(parts).mean())


def test_a_fresh_student_only_depends_on_the_generator_and_the_seed(stage: PathRegression) -> None:
    first, again, other = (fresh_student(stage.teacher, TINY, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    differ = {name for name, value in first.items() if not torch.equal(value, other[name])}
    assert differ == {f"{name}_embed.mlp.0.{kind}" for name in ("span", "strength") for kind in ("weight", "bias")}


def test_it_learns(stage: PathRegression, batch: Batch) -> None:
    student = fresh_student(stage.teacher, TINY, seed=0)
    own = PathRegression(student, stage.teacher, stage.encoder, steps=STEPS, visual_tokens=LENGTHS.visual)
    optimizer = adamw(own.trained.values(), 3e-3)
    losses = []
    for _ in range(30):
        loss = own(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


@torch.no_grad()
def test_a_shown_stem_takes_four_evaluations(stage: PathRegression, batch: Batch, monkeypatch) -> None:
    asked: list[tuple[float, float, float]] = []
    average = AverageGenerator.average

    def watched(self, x: Tensor, t: Tensor, r: Tensor, strength: Tensor, c):
        asked.append((float(t[0]), float(r[0]), float(strength[0])))
        return average(self, x, t, r, strength, c)

    monkeypatch.setattr(AverageGenerator, "average", watched)
    latents = stem_latents(stage, batch)
    assert list(latents) == ["made", "teacher"]
    assert asked == [(k / 4, (k + 1) / 4, 4.5) for k in range(4)]
    sync = selected(stage.encoder, batch)
    real, empty = guidance(stage.teacher, sync, batch, LENGTHS.visual)
    taught = guided_path(stage.teacher, batch["noise"], torch.full((4,), 4.5), real, empty, 25)[-1]
    torch.testing.assert_close(latents["teacher"], stage.teacher.unnormalize(taught))
    x, own = batch["noise"], conditions(stage.network, sync, batch, LENGTHS.visual)
    for k in range(4):  # a fresh student is the generator without guidance
        x = x + stage.teacher.flow(x, torch.tensor([k / 4]), own) / 4
    torch.testing.assert_close(latents["made"], stage.teacher.unnormalize(x))


def test_official_weights_have_a_student_and_the_folder_is_complete(request_: StageRequest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = distill(request_, RunPlace(out=out))
    assert done.checkpoint == out / STUDENT_FILE
    load_part("student", TINY, out)
    assert Pipeline("demo", out).generator is not None
    for name in (ENCODER, "generator_demo.safetensors"):
        assert (out / name).read_bytes() == (request_.checkpoints / name).read_bytes()
    tags = events(out / "distill").Tags()
    assert {tag.split("/")[0] for tag in tags["audio"]} == {"made", "teacher", "true"}
    assert {tag.split("/")[0] for tag in tags["images"]} == {"mixed", "mel, made above teacher above true"}
    assert "loss/validation" in tags["scalars"]
    assert distill(request_, RunPlace(out=out)).losses == []  # resumes from what is now in --out


def test_the_encoder_and_the_generator_come_from_one_folder(request_: StageRequest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ENCODER).hardlink_to(request_.checkpoints / ENCODER)
    with pytest.raises(TrainingError, match=r"no generator_demo.safetensors; run selva-train stage2 with the"):
        distill(request_, RunPlace(out=out))
    (out / ENCODER).rename(out / "generator_demo.safetensors")
    with pytest.raises(TrainingError, match=r"no video_encoder_demo.safetensors; run selva-train stage1 with the"):
        distill(request_, RunPlace(out=out))
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="none: no video_encoder_demo"):
        distill(replace(request_, checkpoints=tmp_path / "none"), RunPlace(out=tmp_path / "new"))
