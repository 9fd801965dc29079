"""Attacks on the state from which a training run resumes."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.damage import VALUES, attacks, changed, damaged, places, same
from selva_ref.training.ema import WeightAverages
from selva_ref.training.errors import TrainingError
from selva_ref.training.hashed import load_hashed, save_hashed
from selva_ref.training.schedule import adamw
from selva_ref.training.settings import RunSettings
from selva_ref.training.state import resume, save_state

SETTINGS = RunSettings(
    stage="stage1", preset="demo", data_sha256="1", start_sha256="2", steps=9, batch=4, learning_rate=1e-3
)


class SmallRun:
    """Two parameters, their optimiser and averages, after `steps` steps, in `folder`."""

    def __init__(self, folder: Path, steps: int = 3) -> None:
        self.path = folder / "state.pt"
        generator = torch.Generator().manual_seed(0)
        self.trained = {name: nn.Parameter(torch.randn(3, 4, generator=generator)) for name in ("a.weight", "b.weight")}
        self.optimizer = adamw(self.trained.values(), 1e-3)
        self.averages = WeightAverages(self.trained, folder / "averages")
        for _ in range(steps):
            sum((value**2).sum() for value in self.trained.values()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averages.update()
            self.averages.snapshot()
        self.steps = steps

    def save(self) -> Path:
        save_state(self.path, self.steps, SETTINGS, self.trained, self.optimizer, self.averages)
        return self.path

    def resume(self) -> int:
        return resume(self.path, SETTINGS, self.trained, self.optimizer, self.averages)


def attack_states(count: int, folder: Path, seed: int = 0, first: int = 0) -> int:
    """Damages `state.pt` and a snapshot, and makes states with a right hash and wrong content."""
    run, fresh = SmallRun(folder / "run"), SmallRun(folder / "fresh", steps=0)
    state = run.save()
    snapshot = run.averages.snapshots()[-1]
    whole, whole_snapshot, content = state.read_bytes(), snapshot.read_bytes(), load_hashed(state)
    fresh.path = state

    def attack(rng: random.Random) -> None:
        kind = rng.randrange(3)
        if kind == 0:
            state.write_bytes(damaged(rng, whole))
        elif kind == 1:
            path = rng.choice(places(content))
            save_hashed(changed(content, path, lambda value: _other(rng, value)), state)
        else:
            snapshot.write_bytes(damaged(rng, whole_snapshot))
            try:
                run.averages.average(0.05)
            finally:
                snapshot.write_bytes(whole_snapshot)
        fresh.resume()
        assert kind == 1, "damage was taken"
        assert same(load_hashed(state), content), "a changed content was taken"

    return attacks(count, seed, first, attack, TrainingError)


def _other(rng: random.Random, value: object) -> object:
    """Returns a different value from `value`; for a tensor, sometimes one that differs in a single way."""
    if isinstance(value, Tensor) and rng.random() < 0.7:
        wrong = value.clone()
        if rng.random() < 0.5 and value.dtype.is_floating_point:
            wrong.view(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf")])
            return wrong
        return rng.choice([value.double(), value.int() if value.dtype != torch.int32 else value.half(), value[None]])
    return rng.choice([other for other in VALUES if not (type(other) is type(value) and other == value)])
