"""The training loop of every stage; it reads from top to bottom."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from selva_ref.model.presets import Preset
from selva_ref.training.ema import WeightAverages
from selva_ref.training.errors import TrainingError
from selva_ref.training.examples.mixed import Batch, MixedClips
from selva_ref.training.outputs import write_checkpoint
from selva_ref.training.precision import autocast
from selva_ref.training.report import Report
from selva_ref.training.schedule import adamw, learning_rate
from selva_ref.training.settings import RunPlace, RunSettings
from selva_ref.training.stages import Stage
from selva_ref.training.state import resume, save_state
from selva_ref.training.stop import deferred_signals
from selva_ref.training.validation import Listener, Validation
from selva_ref.training.workers import START_METHOD, init_loader_worker
from selva_ref.training.world import World

GRADIENT_NORM = 1.0
"""Gradients with a larger norm are scaled down to this norm."""
SNAPSHOTS = 20
"""Number of snapshots of the averages in a run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything one process needs to train a stage."""

    preset: Preset
    settings: RunSettings
    place: RunPlace
    stage: Stage
    clips: MixedClips
    listener: Listener | None
    """Turns latents into sound; not in stage 1, and only in the main process."""

    @property
    def folder(self) -> Path:
        """The folder of the run's own files."""
        return self.place.out / self.settings.stage


def train(run: Run, world: World) -> list[float]:
    """Trains to the end, from the last state or from the start, and returns the loss of each step.

    Raises:
        TrainingError: a damaged state, changed settings, a batch that cannot be divided, a missing video, or a loss or
            weights that are not finite.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    settings, place, device = run.settings, run.place, world.device
    share = world.share(settings.batch, place.accumulate)
    stage, trained = run.stage.to(device), run.stage.trained
    optimizer = adamw(trained.values(), settings.learning_rate)
    averages = WeightAverages(trained, run.folder / "averages") if world.main else None
    state_path, start = run.folder / "state.pt", 0
    if state_path.exists():
        start = resume(state_path, settings, trained, optimizer, averages)
    module = world.wrap(stage)
    validation = Validation(stage, run.clips, device, run.listener)
    losses: list[float] = []
    stopping = False

    with deferred_signals() as stop, _report(run, world, start) as report, closing(_load(run, share, start)) as batches:
        for step in range(start, settings.steps):
            rate = learning_rate(step, base=settings.learning_rate, warmup=settings.warmup, total=settings.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate

            total = torch.zeros((), device=device)
            for part in range(place.accumulate):
                batch = {name: value.to(device) for name, value in next(batches).items()}
                last = part == place.accumulate - 1
                with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
                    with autocast(device, settings.precision):
                        loss = module(batch) / place.accumulate
                    loss.backward()
                total += loss.detach()
            norm = clip_grad_norm_(trained.values(), GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            losses.append(world.mean(total))
            if not isfinite(losses[-1]):
                raise TrainingError(f"step {done}: the loss is {losses[-1]}; try a lower learning rate, or fp32")
            stopping = world.any(bool(stop))
            if report is not None and averages is not None:
                averages.update()
                if done % max(1, settings.steps // SNAPSHOTS) == 0 or done == settings.steps:
                    averages.snapshot()
                report.curves(done, loss__train=losses[-1], learning_rate=rate, gradient_norm=float(norm))
                report.line(done, losses[-1])
                if done % place.validate_every == 0 or done == settings.steps:
                    validation(done, report)
                if done % place.save_every == 0 or done == settings.steps or stopping:
                    save_state(state_path, done, settings, trained, optimizer, averages)
            if stopping:
                break

        if averages is not None and averages.snapshots():
            average = averages.average(place.average_width)
            write_checkpoint(place.out, stage.part, run.preset, stage.network, average)
    if stopping:
        stop.raise_signal()
    return losses


def _report(run: Run, world: World, start: int) -> AbstractContextManager[Report | None]:
    if not world.main:
        return nullcontext()
    return closing(Report(run.folder, stage=run.settings.stage, steps=run.settings.steps, start=start))


def _load(run: Run, share: list[list[int]], start: int) -> Generator[Batch]:
    """Yields this process's parts of all batches from step `start` on."""
    keys = ([(step, index) for index in part] for step in range(start, run.settings.steps) for part in share)
    loader = DataLoader(
        run.clips,
        batch_size=None,  # the keys of one part form one key
        sampler=keys,
        collate_fn=_identity,  # type: ignore[arg-type]  # with batch_size=None it gets an item, not a list
        num_workers=run.place.workers,
        worker_init_fn=init_loader_worker,
        multiprocessing_context=START_METHOD if run.place.workers else None,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise TrainingError(batch)
        yield batch


def _identity(batch: Batch | str) -> Batch | str:
    return batch
