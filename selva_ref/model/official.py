"""Strict loading of checkpoints under the official names, shared by all networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Self

import torch
from torch import Tensor, nn

from selva_ref.errors import CheckpointError


class OfficialModule(nn.Module):
    """Base class of networks whose parameters have the official names."""

    optional_names: tuple[str, ...] = ()
    """Name patterns (fnmatch) that a checkpoint may lack, because the network has these constants itself."""
    ignored_names: tuple[str, ...] = ()
    """Name patterns (fnmatch) that a checkpoint may contain, but that are recomputed or unused here."""

    def load_official(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Loads weights under their official names and returns the network in evaluation mode.

        Raises:
            CheckpointError: a name is missing, unexpected or has the wrong shape; lists them all and loads nothing.
        """
        load_strict(self, dict(state_dict), optional=self.optional_names, ignore=self.ignored_names)
        return self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(self.parameters()).dtype


def load_strict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    optional: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> None:
    """Copies all of `state_dict` into `module`, or nothing.

    Args:
        optional: patterns (`encoder.*`) of names that may be missing and keep their values.
        ignore: patterns of names that are dropped. Floating-point weights may have any precision.

    Raises:
        CheckpointError: lists every name that is missing, unexpected, or has the wrong shape or data type.
    """
    wanted = module.state_dict()
    given = {name: tensor for name, tensor in state_dict.items() if name in wanted or not _matches(name, ignore)}
    missing = [name for name in wanted if name not in given and not _matches(name, optional)]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        f"{name} ({_shape(given[name])}, needs {_shape(tensor)})"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    mistyped = [
        f"{name} ({given[name].dtype}, needs {tensor.dtype})"
        for name, tensor in wanted.items()
        if name in given and given[name].is_floating_point() != tensor.is_floating_point()
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen, "wrong type": mistyped}
    if any(problems.values()):
        text = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)
        raise CheckpointError(f"the checkpoint does not fit {type(module).__name__}: {text}")
    module.load_state_dict(given, strict=False)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
