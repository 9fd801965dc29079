"""Reads the oracle data under `tests/data`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selva_ref.weights.random_weights import fill

DATA = Path(__file__).parents[1] / "data"


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
