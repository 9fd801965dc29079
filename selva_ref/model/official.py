"""What all networks share: they take checkpoints under the official names, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Self

import torch
from torch import Tensor, nn

from selva_ref.errors import CheckpointError


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


def load_strict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    optional: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> None:
    """Copies `state_dict` into `module`, all of it or nothing.

    `optional`: patterns (`encoder.*`) of names that may be missing and keep their values. `ignore`: patterns of names
    that are dropped. Floating-point weights may be of any precision. Raises `CheckpointError` that lists every missing,
    unexpected, misshapen and mistyped name.
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
