"""Post-hoc averages of the trained weights: how long to average is chosen after the run, not before.

Training maintains two averages with power-function profiles and saves snapshots of both. An average of any relative
width is solved for from these (EDM2, arXiv 2312.02696, section 3 and appendix C). The arithmetic is that of
ema-pytorch. Unlike there, only the trained parameters are averaged, and a snapshot file appears complete or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ema_pytorch import PostHocEMA
from torch import Tensor, nn

from selva_ref.training.errors import TrainingError
from selva_ref.training.hashed import check_tensors, load_hashed, save_hashed

WIDTHS = (0.05, 0.1)
"""Relative widths of the two averages: standard deviation of the profile, in run lengths."""


class WeightAverages:
    """Averages of `parameters`, with snapshots under `folder`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
        self.names = list(parameters)
        self.folder = folder
        self._ema = PostHocEMA(
            nn.ParameterList(parameters.values()),
            sigma_rels=WIDTHS,
            update_every=1,
            checkpoint_every_num_steps="manual",
            checkpoint_folder=str(folder),
        )

    def update(self) -> None:
        """Updates both averages; call it after each optimiser step."""
        self._ema.update()

    def snapshot(self) -> None:
        """Saves both averages as they are now, for `average`."""
        for index, followed in enumerate(self._ema.ema_models):
            kept = {name: value.cpu() for name, value in followed.state_dict().items()}
            save_hashed(kept, self.folder / f"{index}.{int(self._ema.step)}.pt")

    def snapshots(self) -> list[Path]:
        """The snapshot files.

        Raises:
            TrainingError: a file is not a snapshot.
        """
        paths = sorted(self.folder.glob("*.pt"))
        for path in paths:
            if not re.fullmatch(r"[01]\.[1-9][0-9]{0,15}\.pt", path.name):
                raise TrainingError(f"{path}: not a snapshot of the averages; move it away and run the command again")
        return paths

    def average(self, width: float) -> dict[str, Tensor]:
        """Averages the weights with relative `width`, such as 0.05, up to the latest snapshot; by name, on the CPU.

        Raises:
            TrainingError: a snapshot is damaged or belongs to another network.
        """
        for path in self.snapshots():
            self._check_snapshot(path)
        average = self._ema.synthesize_ema_model(sigma_rel=width).ema_model
        return {name: value.detach().cpu() for name, value in zip(self.names, average, strict=True)}

    def _check_snapshot(self, path: Path) -> None:
        index, step, _ = path.name.split(".")
        try:
            kept = check_tensors(load_hashed(path), self._ema.ema_models[int(index)].state_dict())
            if kept["step"].item() != int(step):
                raise ValueError("from another step")
        except ValueError as error:
            fix = "remove it and run the command again: the other snapshots are enough for the average"
            raise TrainingError(f"{path}: not a snapshot of these averages ({error}); {fix}") from error

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, for resuming."""
        state: dict[str, Any] = self._ema.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state`. Removes snapshots taken after it, because they will be taken again."""
        self._ema.load_state_dict(state)
        for path in self.snapshots():
            if int(path.stem.split(".")[1]) > int(self._ema.step):
                path.unlink()
