"""Reads the oracle data under `tests/data`."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import selva_ref
from selva_ref.model.official import OfficialModule
from selva_ref.weights.random_weights import fill, normal

DATA = Path(__file__).parents[1] / "data"


TOLERANCE = 1e-4
"""Relative error in float32 within which a network must agree with the original."""


def expected(name: str) -> dict[str, np.ndarray]:
    """Outputs of the original networks, by name."""
    with np.load(DATA / "expected" / f"{name}.npz") as stored:
        return dict(stored)


def manifest_rows(manifest: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Rows (name, shape, "param" | "buffer") of an official state dict."""
    rows = (line.split("\t") for line in (DATA / "manifests" / f"{manifest}.tsv").read_text().splitlines())
    return [(name, tuple(int(n) for n in shape.split(",")) if shape else (), kind) for name, shape, kind in rows]


def official_weights(manifest: str) -> dict[str, Tensor]:
    """The parameters of an official state dict, with values made from their names."""
    return {name: torch.tensor(fill(name, shape)) for name, shape, kind in manifest_rows(manifest) if kind == "param"}


def load(part: str, preset: str, manifest: str) -> OfficialModule:
    """A network with the oracle's weights. Its layers are not initialised before, which would take longer."""
    with patch.object(nn.Linear, "reset_parameters"), patch.object(_ConvNd, "reset_parameters"):
        network = selva_ref.build(part, preset)
    return network.load_official(official_weights(manifest))


def relative_error(out: Tensor, reference: np.ndarray) -> float:
    assert out.shape == reference.shape
    return float(np.linalg.norm(out.numpy() - reference) / np.linalg.norm(reference))


def tensor(key: str, *shape: int) -> Tensor:
    """Standard normal values that follow from `key`."""
    return torch.from_numpy(normal(key, *shape))
