"""Combines two videos into one: a scene with two sources, for which no dataset has labels.

The target and its pair stand side by side, each squeezed to its share of the columns (arXiv 2512.02650, section on
self-supervised video mixing). The side of the target is random. If it were always on the left, a model could learn
"look left" instead of "look for the text".
Shapes: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TRIES = 32


def draw_share(rng: np.random.Generator, alpha: float = 1.0, minimum: float = 0.05) -> float:
    """Draws the target's share of the columns: lambda ~ Beta(alpha, alpha), clipped to [minimum, 1 - minimum]."""
    return float(np.clip(rng.beta(alpha, alpha), minimum, 1 - minimum))


def side_by_side(
    target_T3HW: Tensor, pair_T3HW: Tensor, share: float, target_left: bool, width: int | None = None
) -> Tensor:
    """Returns uint8 (T, 3, H, W): the target in int(share * W) columns, its pair in the rest.

    Resizes with antialiased bicubic on uint8, like every frame of the model. W is the target's unless `width` is given.
    """
    height, width = target_T3HW.shape[-2], target_T3HW.shape[-1] if width is None else width
    columns = int(share * width)
    target, pair = _squeeze(target_T3HW, height, columns), _squeeze(pair_T3HW, height, width - columns)
    return torch.cat((target, pair) if target_left else (pair, target), dim=-1)


def _squeeze(frames_T3HW: Tensor, height: int, columns: int) -> Tensor:
    return F.interpolate(frames_T3HW, size=(height, columns), mode="bicubic", antialias=True)


def different_label(labels: Sequence[str], item: int, rng: np.random.Generator) -> int:
    """Picks an item whose label differs from that of `item`, all equally likely, and returns its index.

    Raises:
        ValueError: all labels are the same.
    """
    return other_label(labels, {labels[item]}, rng)


def other_label(labels: Sequence[str], shown: Set[str], rng: np.random.Generator) -> int:
    """Picks an item whose label is not in `shown`, all equally likely, and returns its index.

    Raises:
        ValueError: there is none.
    """
    for _ in range(_TRIES):
        other = int(rng.integers(len(labels)))
        if labels[other] not in shown:
            return other
    others = [index for index, label in enumerate(labels) if label not in shown]  # if most have these labels
    if not others:
        raise ValueError(f"every clip is labelled {' or '.join(map(repr, sorted(shown)))}: others are needed")
    return others[int(rng.integers(len(others)))]
