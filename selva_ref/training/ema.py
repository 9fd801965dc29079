"""Post-hoc averages of the trained weights: how long to average is chosen after the run, not before.

Two averages with power-function profiles are followed, and snapshots of both kept; from those an average of any
relative width is solved for (EDM2, arXiv 2312.02696, section 3 and appendix C). The arithmetic is that of ema-pytorch;
what is ours is that only the trained parameters are averaged and that snapshots appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ema_pytorch import PostHocEMA
from torch import Tensor, nn

from selva_ref.checkpoints import written_whole

FOLLOWED = (0.05, 0.1)
"""Relative widths of the two averages: standard deviation of the profile, in run lengths."""


class WeightAverages:
    """Averages of `parameters`, snapshots under `folder`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
        self.names = list(parameters)
        self.folder = folder
        self._ema = PostHocEMA(
            nn.ParameterList(parameters.values()),
            sigma_rels=FOLLOWED,
            update_every=1,
            checkpoint_every_num_steps="manual",
            checkpoint_folder=str(folder),
        )

    def update(self) -> None:
        """Call after each step of the optimiser."""
        self._ema.update()

    def snapshot(self) -> None:
        """Keeps both averages as they are now, for `average`."""
        for index, followed in enumerate(self._ema.ema_models):
            with written_whole(self.folder / f"{index}.{int(self._ema.step)}.pt") as temporary:
                torch.save({name: value.cpu() for name, value in followed.state_dict().items()}, temporary)

    def snapshots(self) -> list[Path]:
        """The files kept."""
        return sorted(self.folder.glob("*.pt"))

    def average(self, width: float) -> dict[str, Tensor]:
        """Weights averaged with relative `width`, such as 0.05, up to the latest snapshot; by name, on the CPU."""
        average = self._ema.synthesize_ema_model(sigma_rel=width).ema_model
        return {name: value.detach().cpu() for name, value in zip(self.names, average, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, for resuming."""
        return self._ema.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`; snapshots taken after it are removed, for they will be taken again."""
        self._ema.load_state_dict(state)
        for path in self.snapshots():
            if int(path.stem.split(".")[1]) > int(self._ema.step):
                path.unlink()
