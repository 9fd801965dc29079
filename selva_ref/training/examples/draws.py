"""Random numbers that depend only on (seed, step, item).

No process has a generator of its own. So the numbers stay the same if a run stops and resumes, the number of workers
changes, or a batch is split over machines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER, _ITEM, _HELD_OUT, _SPLIT = range(4)


def item_generator(seed: int, step: int, index: int) -> np.random.Generator:
    """Generator for everything drawn for item `index` of the global batch of step `step`."""
    return _generator(seed, _ITEM, step, index)


def held_out_generator(seed: int, index: int) -> np.random.Generator:
    """Generator for the validation clip `index`, the same at every validation."""
    return _generator(seed, _HELD_OUT, index)


def split(seed: int, items: int, holdout: int) -> tuple[list[int], list[int]]:
    """Splits the items into those to train with and `holdout` others."""
    shuffled = _generator(seed, _SPLIT).permutation(items).tolist()
    return sorted(shuffled[holdout:]), sorted(shuffled[:holdout])


def item_at(seed: int, position: int, items: int) -> int:
    """The item at `position` of the whole run: each item once per epoch, in a new order every epoch."""
    epoch, place = divmod(position, items)
    return int(_order(seed, epoch, items)[place])


@lru_cache(maxsize=2)  # a batch may span two epochs
def _order(seed: int, epoch: int, items: int) -> NDArray[np.int64]:
    return _generator(seed, _ORDER, epoch).permutation(items)


def _generator(seed: int, *place: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, *place))))
