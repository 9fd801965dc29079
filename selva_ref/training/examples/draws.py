"""Random numbers that follow from (seed, step, item) alone.

So a run that stops and goes on, another number of workers, or a batch split over machines draws the same: neither a
process nor an order of arrival has a generator of its own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER, _ITEM, _HELD_OUT, _SPLIT = range(4)


def item_generator(seed: int, step: int, index: int) -> np.random.Generator:
    """For all that is drawn for item `index` of the global batch of step `step`."""
    return _generator(seed, _ITEM, step, index)


def held_out_generator(seed: int, index: int) -> np.random.Generator:
    """For the validation clip `index`: the same at every validation."""
    return _generator(seed, _HELD_OUT, index)


def split(seed: int, items: int, holdout: int) -> tuple[list[int], list[int]]:
    """Items to train with, and `holdout` others."""
    shuffled = _generator(seed, _SPLIT).permutation(items).tolist()
    return sorted(shuffled[holdout:]), sorted(shuffled[:holdout])


def item_at(seed: int, position: int, items: int) -> int:
    """Which of `items` is the `position`-th to be seen: each once an epoch, in an order of that epoch."""
    epoch, place = divmod(position, items)
    return int(_order(seed, epoch, items)[place])


@lru_cache(maxsize=2)  # a batch may lie across two epochs
def _order(seed: int, epoch: int, items: int) -> NDArray[np.int64]:
    return _generator(seed, _ORDER, epoch).permutation(items)


def _generator(seed: int, *place: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, *place))))
