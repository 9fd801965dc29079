"""Every stage on painted frames: golden losses, what changes, stopping and resuming, and which files remain."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_samples import LABELS, LENGTHS, RULES, TINY, PaintedClips, curve, events, write_checkpoints, write_features

from selva_ref.errors import CheckpointNotFoundError
from selva_ref.model.presets import PRESETS
from selva_ref.model.video_encoder import segment
from selva_ref.pipeline import Pipeline, preprocess
from selva_ref.training import run
from selva_ref.training.errors import TrainingError
from selva_ref.training.hashed import save_hashed
from selva_ref.training.initial import fresh_encoder, fresh_student
from selva_ref.training.parameters import STAGE1, STAGE2, STUDENT, trainable
from selva_ref.training.run import StageRequest, distill, stage1, stage2
from selva_ref.training.settings import RunPlace
from selva_ref.training.stages import Distillation, selected
from selva_ref.weights.loading import load_part

STAGES = {"stage1": stage1, "stage2": stage2, "distill": distill}
FILES = {
    "stage1": "video_encoder_demo.safetensors",
    "stage2": "generator_demo.safetensors",
    "distill": "student_demo.safetensors",
}
PATTERNS = {"stage1": STAGE1, "stage2": STAGE2, "distill": STUDENT}
GOLDEN = {
    "stage1": [2.161320, 2.043271, 1.740274, 1.573098, 1.471067, 1.399936],
    "stage2": [3.719247, 3.887128, 3.754931, 3.506279, 3.672195, 3.274316],
    "distill": [1.771940, 0.257896, 1.008217, 0.817173, 0.901669, 0.327289],
}
"""Losses of the six steps of `choices`. A refactor keeps them; anything else changes the training."""


@pytest.fixture(autouse=True, scope="module")
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "demo", TINY)
        yield


@pytest.fixture(autouse=True)
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MixedClips", PaintedClips)


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> StageRequest:
    folder = tmp_path_factory.mktemp("run")
    checkpoints = write_checkpoints(folder / "checkpoints", TINY)
    return StageRequest(
        data=write_features(folder / "data"),
        checkpoints=checkpoints,
        base=checkpoints / "base.safetensors",
        steps=6,
        batch=4,
        holdout=2,
        warmup=2,
        learning_rate=1e-3,
        device="cpu",
        teacher_steps=5,
        spans=3,
    )


@pytest.fixture(scope="module")
def trained(choices: StageRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """Runs every stage to the end and returns their folder and losses."""
    place = RunPlace(out=tmp_path_factory.mktemp("trained") / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "MixedClips", PaintedClips)
        return place.out, {name: stage(choices, place).losses for name, stage in STAGES.items()}


def place_for(stage: str, trained: tuple[Path, object], out: Path) -> RunPlace:
    """Makes a new folder with the files that the stage needs."""
    out.mkdir()
    for earlier in list(FILES)[: list(FILES).index(stage)]:
        (out / FILES[earlier]).write_bytes((trained[0] / FILES[earlier]).read_bytes())
    return RunPlace(out=out)


@pytest.mark.parametrize("stage", STAGES)
def test_golden_losses(trained, stage: str) -> None:
    assert trained[1][stage] == pytest.approx(GOLDEN[stage], rel=1e-4)
    assert curve(trained[0] / stage) == pytest.approx(trained[1][stage], rel=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_only_trained_parameters_have_changed(choices: StageRequest, trained, stage: str) -> None:
    if stage == "stage1":
        before = fresh_encoder(TINY, choices.checkpoints / "teacher_demo.safetensors", seed=0)
    elif stage == "stage2":
        before = load_part("generator", TINY, None)
    else:
        before = fresh_student(load_part("generator", TINY, trained[0]), TINY, seed=0)
    names = trainable(before, PATTERNS[stage]).keys()
    after = load_file(trained[0] / FILES[stage])
    moved = {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}
    assert moved == set(names)
    assert before.state_dict().keys() == after.keys()


@pytest.mark.parametrize("stage", ["stage2", "distill"])
def test_the_network_itself_is_frozen_but_for_its_trained_part(choices, trained, tmp_path, monkeypatch, stage) -> None:
    """Checks the networks in memory, including the encoder, and the student's teacher."""
    kept: list[tuple[run.Run, dict[str, torch.Tensor]]] = []

    def watched(what: run.Run, world):
        kept.append((what, {name: value.clone() for name, value in what.stage.state_dict().items()}))
        return train(what, world)

    train = run.train
    monkeypatch.setattr(run, "train", watched)
    STAGES[stage](choices, place_for(stage, trained, tmp_path / "out"))
    ((what, before),) = kept
    moved = {name for name, value in what.stage.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"network.{name}" for name in what.stage.trained}


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_saves_and_the_same_call_resumes(choices, trained, tmp_path, monkeypatch, stage: str) -> None:
    place = place_for(stage, trained, tmp_path / "out")
    monkeypatch.setattr(PaintedClips, "_example", at_step(2, lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        STAGES[stage](choices, place)
    monkeypatch.undo()
    monkeypatch.setattr(run, "MixedClips", PaintedClips)
    assert curve(place.out / stage) == pytest.approx(trained[1][stage][:3], rel=1e-6)
    assert STAGES[stage](choices, place).losses == trained[1][stage][3:]
    assert (place.out / FILES[stage]).read_bytes() == (trained[0] / FILES[stage]).read_bytes()


def test_a_killed_run_resumes_from_its_last_state(choices, trained, tmp_path, monkeypatch) -> None:
    def die() -> None:
        raise RuntimeError("killed")

    place = RunPlace(out=tmp_path / "out", save_every=2)
    monkeypatch.setattr(PaintedClips, "_example", at_step(5, die))
    with pytest.raises(RuntimeError, match="killed"):
        stage1(choices, place)
    monkeypatch.undo()
    monkeypatch.setattr(run, "MixedClips", PaintedClips)
    assert stage1(choices, place).losses == trained[1]["stage1"][4:]
    assert (place.out / FILES["stage1"]).read_bytes() == (trained[0] / FILES["stage1"]).read_bytes()
    assert curve(place.out / "stage1") == pytest.approx(trained[1]["stage1"], rel=1e-6)  # step 5 appears once


def at_step(wanted: int, act: Callable[[], None]):
    original = PaintedClips._example

    def example(self: PaintedClips, step: int, index: int):
        if (step, index) == (wanted, 1):
            act()
        return original(self, step, index)

    return example


@pytest.mark.parametrize("stage", STAGES)
def test_absent_texts_change_the_losses(choices, trained, tmp_path, stage: str) -> None:
    data = write_features(tmp_path / "data", labels=(*LABELS, "violin"))
    made = []
    for absent in (0.0, 0.9):
        place = place_for(stage, trained, tmp_path / f"{stage} {absent}")
        made.append(STAGES[stage](replace(choices, data=data, absent=absent), place).losses)
    assert all(abs(a - b) > 0.01 * a for a, b in zip(*made, strict=True))


def test_what_is_absent_looks_like_a_still_picture_to_the_teacher(choices) -> None:
    path = choices.checkpoints / "teacher_demo.safetensors"
    teacher = load_part("teacher", TINY, choices.checkpoints)
    stage = Distillation(fresh_encoder(TINY, path, seed=0))
    with torch.no_grad():
        for parameter in stage.trained.values():  # the student's pooling is trained, the teacher's stays
            parameter.add_(0.1)
    shape = (2, LENGTHS.frames, 3, TINY.video.image_size, TINY.video.image_size)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    held = frames[:, :1].expand(shape)
    video = preprocess(held.flatten(0, 1), TINY.video.image_size).unflatten(0, held.shape[:2])
    with torch.no_grad():
        expected = teacher(segment(video, TINY.video)).flatten(1, 2)
    still = stage.still(frames, LENGTHS.sync)
    torch.testing.assert_close(still, expected, atol=1e-5, rtol=1e-5)
    batch = {
        "frames": frames,
        "absent": torch.tensor([True, False]),
        "t5": torch.zeros(2, 3, TINY.video.text_width),
        "t5_mask": torch.ones(2, 3, dtype=torch.bool),
        "teacher": torch.zeros_like(still),
    }
    with torch.no_grad():
        seen, loss = selected(stage.network, batch), stage(batch)
    expected = ((seen[0] - still[0]).square().mean() + seen[1].square().mean()) / 2
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulating_gives_the_same_losses(choices, trained, tmp_path, stage: str) -> None:
    place = replace(place_for(stage, trained, tmp_path / "out"), accumulate=4)
    assert STAGES[stage](choices, place).losses == pytest.approx(trained[1][stage], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_is_close(choices, trained, tmp_path, stage: str) -> None:
    place = place_for(stage, trained, tmp_path / "out")
    losses = STAGES[stage](replace(choices, precision="bf16"), place).losses
    assert losses == pytest.approx(trained[1][stage], rel=0.03)
    assert losses != trained[1][stage]
    assert {value.dtype for value in load_file(place.out / FILES[stage]).values()} == {torch.float32}


def test_stage1_learns(choices: StageRequest, tmp_path: Path) -> None:
    losses = stage1(replace(choices, steps=40, batch=2), RunPlace(out=tmp_path / "out")).losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_folder_serves_the_pipeline(trained) -> None:
    pipeline = Pipeline("demo", trained[0])
    weights = load_file(trained[0] / FILES["stage2"])
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.generator.state_dict().items())
    frames = torch.zeros(LENGTHS.frames, 3, 32, 32, dtype=torch.uint8).numpy()
    assert pipeline(frames, "dog barking", duration_s=0.96, steps=1).shape == (LENGTHS.samples,)


@pytest.mark.full_size
def test_what_training_saved_is_exported(trained, tmp_path: Path) -> None:
    from selva_export.bundle import ExportRequest, export_bundle

    export_bundle(ExportRequest(preset=TINY, precision="fp32", checkpoints=trained[0], out=tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "manifest.json").exists()


def test_tensorboard_shows_curves_pictures_and_sounds(trained) -> None:
    shown = events(trained[0] / "stage2")
    tags = shown.Tags()
    assert set(tags["scalars"]) == {"loss/train", "loss/validation", "learning_rate", "gradient_norm"}
    assert len(tags["images"]) == 4  # two held-out clips: mixed frames, mel
    assert len(tags["audio"]) == 4  # generated and true
    (sound,) = shown.Audio(next(tag for tag in tags["audio"] if tag.startswith("made/")))
    assert (sound.sample_rate, sound.length_frames) == (16000, 512 * LENGTHS.latent)
    (strip,) = shown.Images(next(tag for tag in tags["images"] if tag.startswith("mixed/")))
    assert (strip.width, strip.height) == (8 * 32, 32)
    assert "loss/validation" in events(trained[0] / "stage1").Tags()["scalars"]


def test_a_finished_run_can_be_averaged_again(choices, trained, tmp_path) -> None:
    place = place_for("stage2", trained, tmp_path / "out")
    stage2(choices, place)
    narrow = load_file(place.out / FILES["stage2"])
    assert stage2(choices, replace(place, average_width=0.1)).losses == []
    wide = load_file(place.out / FILES["stage2"])
    base = load_part("generator", TINY, None).state_dict()
    name = "final_layer.adaLN_modulation.1.weight"
    assert (wide[name] - base[name]).norm() < (narrow[name] - base[name]).norm()  # closer to the initial weights


@torch.no_grad()
def test_a_fresh_encoder_begins_near_its_teacher(choices: StageRequest) -> None:
    path = choices.checkpoints / "teacher_demo.safetensors"
    encoder, again = (fresh_encoder(TINY, path, seed=3) for _ in range(2))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())
    frames = torch.randint(0, 256, (LENGTHS.frames, 3, 32, 32), dtype=torch.uint8)
    video = preprocess(frames, RULES.image_size)[None]
    text, mask = torch.randn(1, 6, TINY.video.text_width), torch.ones(1, 6, dtype=torch.bool)
    tokens = encoder.backbone(segment(video, TINY.video))
    changed = encoder.synch_text_cross_blocks[0](tokens, *encoder.project_text(text, mask))
    assert 0 < (changed - tokens).norm() / tokens.norm() < 0.2
    teacher = load_part("teacher", TINY, choices.checkpoints)(segment(video, TINY.video)).flatten(1, 2)
    student = encoder(video, text, mask)
    assert (student - teacher).norm() / teacher.norm() < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 2e-3},
            r"state.pt: started with learning_rate 0.001, not 0.002; use the same value, or choose another",
        ),
        ({"seed": 1}, "started with seed 0, not 1"),
        ({"spans": 4}, "started with spans 3, not 4"),
        ({"batch": 0}, "batch 0: must be at least 1"),
        ({"teacher_steps": 0}, "teacher steps 0: must be at least 1"),
        ({"spans": 0}, "spans 0: must be at least 1"),
        ({"learning_rate": 0.0}, "learning rate 0.0: must be above 0"),
        ({"absent": 1.0}, "absent 1.0: must be from 0 to below 1"),
        ({"holdout": 8}, "8 clips, of which 8 are held out; hold out fewer with --holdout"),
        ({"data": Path("nowhere")}, r"nowhere: no data.json; create the folder with: selva-train extract"),
    ],
)
def test_mistakes_in_a_request(choices, trained, changes: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        stage1(replace(choices, **changes), RunPlace(out=trained[0]))


def test_mistakes_in_folders(choices, trained, tmp_path) -> None:
    with pytest.raises(TrainingError, match="holds the checkpoints to start from; choose another --out"):
        stage1(choices, RunPlace(out=choices.checkpoints))
    with pytest.raises(TrainingError, match=r"no video_encoder_demo.safetensors; run selva-train stage1 with the same"):
        stage2(choices, RunPlace(out=tmp_path / "new"))
    with pytest.raises(CheckpointNotFoundError, match=r"no mmaudio_demo.pth, .* or name another with --base"):
        stage2(replace(choices, base=None), RunPlace(out=trained[0]))
    with pytest.raises(TrainingError, match="batch 4: must be a multiple of 3"):
        stage1(choices, RunPlace(out=tmp_path / "new", accumulate=3))


def test_a_state_is_never_unpickled(choices, tmp_path) -> None:
    place = RunPlace(out=tmp_path / "out")
    (place.out / "stage1").mkdir(parents=True)
    save_hashed({"step": Path("x")}, place.out / "stage1" / "state.pt")
    with pytest.raises(TrainingError, match=r"state.pt: not the state of a run \(.*\); move it away to start again"):
        stage1(choices, place)
