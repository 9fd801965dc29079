"""What a run goes on from: one file, there as a whole or not at all.

Random numbers need no place in it: they follow from the seed and the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from selva_ref.checkpoints import written_whole
from selva_ref.training.ema import WeightAverages
from selva_ref.training.errors import TrainingError
from selva_ref.training.settings import RunSettings


def save_state(
    path: Path,
    step: int,
    settings: RunSettings,
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    averages: WeightAverages,
) -> None:
    """Replaces the file by the state after `step` steps."""
    state = {
        "step": step,
        "settings": asdict(settings),
        "weights": {name: parameter.detach() for name, parameter in trained.items()},
        "optimizer": optimizer.state_dict(),
        "averages": averages.state_dict(),
    }
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def read_state(path: Path, settings: RunSettings) -> dict[str, Any]:
    """The state, on the CPU, never unpickling anything but tensors and plain values.

    Raises:
        TrainingError: damaged, or of a run with other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = state["settings"]
        if state.keys() != {"step", "settings", "weights", "optimizer", "averages"}:
            raise KeyError("other entries")
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise TrainingError(f"{path}: not the state of a run; move it away to start anew") from error
    for name, value in asdict(settings).items():
        if before.get(name) != value:
            mend = "give the same again, or another --out"
            raise TrainingError(f"{path}: begun with {name} {before.get(name)}, not {value}; {mend}")
    return state


@torch.no_grad()
def restore(
    state: Mapping[str, Any],
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    averages: WeightAverages | None,
) -> int:
    """Fills everything from `state`; returns the number of steps done."""
    for name, parameter in trained.items():
        parameter.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    if averages is not None:
        averages.load_state_dict(state["averages"])
    return int(state["step"])
