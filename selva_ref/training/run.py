"""`selva-train stage1`, `stage2` and `distill` as functions: each prepares a run and trains."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from selva_ref.errors import CheckpointNotFoundError
from selva_ref.model.presets import Preset, get_preset
from selva_ref.pipeline import sequence_rules
from selva_ref.training.data.frozen import posterior_of_silence
from selva_ref.training.data.store import Features
from selva_ref.training.errors import TrainingError
from selva_ref.training.examples.mixed import MixedClips, distillation_targets, flow_targets, student_targets
from selva_ref.training.initial import base_generator, find_base, fresh_encoder, fresh_student
from selva_ref.training.loop import Run, train
from selva_ref.training.outputs import UNTRAINED, link_parts
from selva_ref.training.settings import Choices, RunPlace, RunSettings
from selva_ref.training.stages import Distillation, FlowMatching, PathRegression
from selva_ref.training.validation import Listener
from selva_ref.training.world import pick_device, process_group
from selva_ref.weights.checkpoints import file_sha256, find_checkpoint, get_checkpoint
from selva_ref.weights.loading import load_part

TAUGHT_IN = {"video_encoder": "stage1", "generator": "stage2"}
"""Which stage trains a part that the student starts from."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of a run."""

    checkpoint: Path
    losses: list[float]
    """One per step of this call, starting where it resumed."""


@dataclass(frozen=True, kw_only=True)
class StageRequest(Choices):
    """The user's choices, except those in `RunPlace`."""

    data: Path
    """Folder filled by `extract`."""
    checkpoints: Path
    """Folder of the official checkpoints."""
    device: str = "auto"
    base: Path | None = None
    """Stage 2: the generator to start from; None: MMAudio's among the checkpoints."""


def stage1(request: StageRequest, place: RunPlace) -> Trained:
    """Trains the video encoder, starting from the teacher's weights.

    Raises:
        TrainingError: the settings, the features or the run's folder cannot be used, or training fails.
        CheckpointError: a checkpoint is missing or does not fit.
    """
    features = _features(request, place)
    preset = get_preset(features.description.preset)
    teacher = find_checkpoint(request.checkpoints, "teacher", preset.name)
    settings = _settings("stage1", request, features, [teacher])
    with process_group(pick_device(request.device)) as world:
        run = Run(
            preset=preset,
            settings=settings,
            place=place,
            stage=Distillation(fresh_encoder(preset, teacher, settings.seed)),
            clips=MixedClips(features, sequence_rules(preset), settings, distillation_targets),
            listener=None,
        )
        losses = train(run, world)
    return Trained(checkpoint=place.out / get_checkpoint(preset.name, "video_encoder").file, losses=losses)


def stage2(request: StageRequest, place: RunPlace) -> Trained:
    """Trains the generator with the video encoder that stage 1 left in `place.out`, and completes that folder.

    Raises:
        TrainingError: the settings, the features or the run's folder cannot be used, or training fails.
        CheckpointError: a checkpoint is missing or does not fit.
    """
    features = _features(request, place)
    preset = get_preset(features.description.preset)
    encoder = _trained(place.out, "video_encoder", preset)
    base = request.base or find_base(request.checkpoints, preset)
    settings = _settings("stage2", request, features, [encoder, base])
    rules = sequence_rules(preset)
    lengths = rules.lengths(features.description.duration_s)
    silence = posterior_of_silence(preset, request.checkpoints, lengths.latent) if settings.absent else None
    targets = partial(flow_targets, silence=silence)
    with process_group(pick_device(request.device)) as world:
        run = Run(
            preset=preset,
            settings=settings,
            place=place,
            stage=FlowMatching(
                base_generator(preset, base),
                load_part("video_encoder", preset, place.out),
                lengths.visual,
            ),
            clips=MixedClips(features, rules, settings, targets),
            listener=Listener(preset, request.checkpoints, world.device) if world.main else None,
        )
        losses = train(run, world)
        if world.main:
            link_parts(place.out, request.checkpoints, preset, UNTRAINED)
    return Trained(checkpoint=place.out / get_checkpoint(preset.name, "generator").file, losses=losses)


def distill(request: StageRequest, place: RunPlace) -> Trained:
    """Trains the student of a generator and its encoder, and completes `place.out`.

    Both are those that the other stages left in `place.out`. If it has neither, both are the checkpoints'.

    Raises:
        TrainingError: the settings, the features or the run's folder cannot be used, or training fails.
        CheckpointError: a checkpoint is missing or does not fit.
    """
    features = _features(request, place)
    preset = get_preset(features.description.preset)
    home = _home_of_the_taught(request, place, preset)
    settings = _settings("distill", request, features, [find_checkpoint(home, part, preset.name) for part in TAUGHT_IN])
    rules = sequence_rules(preset)
    targets = partial(student_targets, spans=settings.spans)
    teacher = load_part("generator", preset, home)
    with process_group(pick_device(request.device)) as world:
        run = Run(
            preset=preset,
            settings=settings,
            place=place,
            stage=PathRegression(
                fresh_student(teacher, preset, settings.seed),
                teacher,
                load_part("video_encoder", preset, home),
                steps=settings.teacher_steps,
                visual_tokens=rules.lengths(features.description.duration_s).visual,
            ),
            clips=MixedClips(features, rules, settings, targets),
            listener=Listener(preset, request.checkpoints, world.device) if world.main else None,
        )
        losses = train(run, world)
        if world.main:
            link_parts(place.out, home, preset, TAUGHT_IN)
            link_parts(place.out, request.checkpoints, preset, UNTRAINED)
    return Trained(checkpoint=place.out / get_checkpoint(preset.name, "student").file, losses=losses)


def _features(request: StageRequest, place: RunPlace) -> Features:
    if place.out.resolve() == request.checkpoints.resolve():
        raise TrainingError(f"{place.out}: holds the checkpoints to start from; choose another --out")
    return Features(request.data)


def _trained(out: Path, part: str, preset: Preset) -> Path:
    try:
        return find_checkpoint(out, part, preset.name)
    except CheckpointNotFoundError as error:
        file = get_checkpoint(preset.name, part).file
        raise TrainingError(f"{out}: no {file}; run selva-train {TAUGHT_IN[part]} with the same --out first") from error


def _home_of_the_taught(request: StageRequest, place: RunPlace, preset: Preset) -> Path:
    """The folder of the encoder and the generator: never one from here and the other from there."""
    names = {name for part in TAUGHT_IN for name in get_checkpoint(preset.name, part).names}
    if not any((place.out / name).is_file() for name in names):
        return request.checkpoints
    for part in TAUGHT_IN:
        _trained(place.out, part, preset)
    return place.out


def _settings(stage: str, request: StageRequest, features: Features, starts: list[Path]) -> RunSettings:
    return RunSettings(
        stage=stage,
        preset=features.description.preset,
        data_sha256=features.sha256,
        start_sha256=hashlib.sha256("".join(map(file_sha256, starts)).encode()).hexdigest(),
        **{field.name: getattr(request, field.name) for field in fields(Choices)},
    )
