"""The state a run resumes from: one file, complete or absent, and checked before anything is used.

It does not contain random numbers, because they follow from the seed and the step, or the optimiser's settings, because
they follow from the run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selva_ref.training.ema import WeightAverages
from selva_ref.training.errors import TrainingError
from selva_ref.training.hashed import check_tensors, load_hashed, save_hashed
from selva_ref.training.settings import RunSettings

_ENTRIES = {"step", "settings", "weights", "optimizer", "averages"}


def save_state(
    path: Path,
    step: int,
    settings: RunSettings,
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    averages: WeightAverages,
) -> None:
    """Replaces the file with the state after `step` steps.

    Raises:
        TrainingError: the run could not resume from this state; the file does not change.
    """
    state = {
        "step": step,
        "settings": asdict(settings),
        "weights": {name: parameter.detach() for name, parameter in trained.items()},
        "optimizer": optimizer.state_dict()["state"],
        "averages": averages.state_dict(),
    }
    try:
        _check(state, settings, trained, averages)
    except ValueError as error:
        raise TrainingError(f"step {step}: {error}; not saved; try a lower learning rate, or fp32") from error
    save_hashed(state, path)


@torch.no_grad()
def resume(
    path: Path,
    settings: RunSettings,
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    averages: WeightAverages | None,
) -> int:
    """Loads everything from the file and returns the number of steps done.

    Raises:
        TrainingError: the file is damaged, does not fit this run, or comes from a run with other settings. Nothing is
            loaded then.
    """
    try:
        state = _entries(load_hashed(path))
        before = state["settings"]
        for name, value in asdict(settings).items():
            if before.get(name) != value:
                fix = "use the same value, or choose another --out"
                raise TrainingError(f"{path}: started with {name} {before.get(name)}, not {value}; {fix}")
        _check(state, settings, trained, averages)
    except TrainingError:
        raise
    except ValueError as error:
        raise TrainingError(f"{path}: not the state of a run ({error}); move it away to start again") from error
    for name, parameter in trained.items():
        parameter.copy_(state["weights"][name])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state["optimizer"]})
    if averages is not None:
        averages.load_state_dict(state["averages"])
    return int(state["step"])


def _entries(state: object) -> dict[str, Any]:
    if not isinstance(state, dict) or state.keys() != _ENTRIES or not isinstance(state["settings"], dict):
        raise ValueError("it has the wrong entries")
    if not all(isinstance(value, str | int | float) for value in state["settings"].values()):
        raise ValueError("a setting has the wrong type")
    return state


def _check(
    state: dict[str, Any],
    settings: RunSettings,
    trained: Mapping[str, nn.Parameter],
    averages: WeightAverages | None,
) -> None:
    """Checks that a run with these parameters can resume from the state.

    Raises:
        ValueError: it cannot; the message says why.
    """
    step = state["step"]
    if type(step) is not int or not 0 < step <= settings.steps:
        raise ValueError(f"step {step!r} is not from 1 to {settings.steps}")
    check_tensors(state["weights"], trained)
    moments = _moments(state["optimizer"], len(trained))
    check_tensors(moments, _expected_moments(trained))
    if any((moment < 0).any() for name, moment in moments.items() if name.endswith("exp_avg_sq")):
        raise ValueError("the optimiser's mean of squares is negative")
    counted = [tensor for name, tensor in moments.items() if name.endswith(".step")]
    if averages is not None:
        check_tensors(state["averages"], averages.state_dict())
        counted += [tensor for name, tensor in state["averages"].items() if name.endswith(".step")]
    if any(tensor.item() != step for tensor in counted):
        raise ValueError(f"the optimiser or the averages are not at step {step}")


def _moments(optimizer: object, parameters: int) -> dict[str, Any]:
    """AdamW's values for each parameter: "0.exp_avg" → tensor."""
    if not isinstance(optimizer, dict) or optimizer.keys() != set(range(parameters)):
        raise ValueError("the optimiser has other parameters")
    if not all(isinstance(kept, dict) for kept in optimizer.values()):
        raise ValueError("the optimiser's state has the wrong type")
    return {f"{index}.{name}": value for index, kept in optimizer.items() for name, value in kept.items()}


def _expected_moments(trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    wanted: dict[str, Tensor] = {}
    for index, parameter in enumerate(trained.values()):
        wanted[f"{index}.step"] = torch.zeros(())
        wanted[f"{index}.exp_avg"] = wanted[f"{index}.exp_avg_sq"] = parameter
    return wanted
