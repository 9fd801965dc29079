"""`selva-train stage1` and `stage2` as functions: each prepares a run and trains."""

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
from selva_ref.training.examples.mixed import MixedClips, distillation_targets, flow_targets
from selva_ref.training.initial import base_generator, find_base, fresh_encoder
from selva_ref.training.loop import Run, train
from selva_ref.training.outputs import link_untrained
from selva_ref.training.settings import Choices, RunPlace, RunSettings
from selva_ref.training.stages import Distillation, FlowMatching
from selva_ref.training.validation import Listener
from selva_ref.training.world import pick_device, process_group
from selva_ref.weights.checkpoints import file_sha256, find_checkpoint, get_checkpoint
from selva_ref.weights.loading import load_part


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
    encoder = _trained_encoder(place.out, preset)
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
            link_untrained(place.out, request.checkpoints, preset)
    return Trained(checkpoint=place.out / get_checkpoint(preset.name, "generator").file, losses=losses)


def _features(request: StageRequest, place: RunPlace) -> Features:
    if place.out.resolve() == request.checkpoints.resolve():
        raise TrainingError(f"{place.out}: holds the checkpoints to start from; choose another --out")
    return Features(request.data)


def _trained_encoder(out: Path, preset: Preset) -> Path:
    try:
        return find_checkpoint(out, "video_encoder", preset.name)
    except CheckpointNotFoundError as error:
        file = get_checkpoint(preset.name, "video_encoder").file
        raise TrainingError(f"{out}: no {file}; run selva-train stage1 with the same --out first") from error


def _settings(stage: str, request: StageRequest, features: Features, starts: list[Path]) -> RunSettings:
    return RunSettings(
        stage=stage,
        preset=features.description.preset,
        data_sha256=features.sha256,
        start_sha256=hashlib.sha256("".join(map(file_sha256, starts)).encode()).hexdigest(),
        **{field.name: getattr(request, field.name) for field in fields(Choices)},
    )
