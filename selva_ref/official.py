"""What all networks share: they take checkpoints under the official names, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from selva_ref.checkpoints import load_strict


class OfficialModule(nn.Module):
    """A network whose parameters carry the official names."""

    optional_names: tuple[str, ...] = ()
    """Name patterns (fnmatch) that a checkpoint may lack: constants we also have."""
    ignored_names: tuple[str, ...] = ()
    """Name patterns (fnmatch) that a checkpoint may hold and that are recomputed or unused here."""

    def load_official(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Fills the network from official names and returns it, in evaluation mode.

        Raises:
            CheckpointError: lists every missing, unexpected and misshapen name; nothing is loaded then.
        """
        load_strict(self, dict(state_dict), optional=self.optional_names, ignore=self.ignored_names)
        return self.eval()

    def bake(self) -> Self:
        """Rewrites the weights in place for inference, equal in exact arithmetic: layouts, folded scales and norms.

        The official names still stand, but no longer mean the same: neither train nor save a baked network.
        """
        for module in self.modules():
            if module is not self and hasattr(module, "bake"):
                module.bake()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(self.parameters()).dtype
