"""Seeded damage: each attack must be refused with a typed error, or change nothing.

A failure raises `AssertionError` with the seed and the number that reproduce it: `attack_states(1, folder, seed,
first=17)` repeats attack 17.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

VALUES = (None, True, False, -1, 0, 1, 2**63, float("inf"), float("nan"), 0.5, "", "x", "../x", "x\0y", [], {}, [None])
"""Replacement values for a field: every JSON type, and numbers outside every range."""


def attacks(
    count: int,
    seed: int,
    first: int,
    attack: Callable[[random.Random], None],
    expected: type[Exception] | tuple[type[Exception], ...],
) -> int:
    """Runs the attacks and returns how many were refused. The others must have changed nothing."""
    refused = 0
    for number in range(first, first + count):
        try:
            attack(random.Random(f"{seed}/{number}"))
        except expected as error:
            refused += 1
            problem = "" if str(error) and "\n" not in str(error) else f"not one line: {error!r}"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            continue
        assert not problem, f"seed {seed}, first {number}: {problem}"
    return refused


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """Changes two bytes, or loses, doubles or zeroes a part; never returns `whole` itself."""
    content = bytearray(whole)
    kind, at, length = rng.randrange(6), rng.randrange(len(whole)), rng.randrange(1, 4000)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        del content[at : at + length]
    elif kind == 2:
        content[at:at] = content[at : at + length]
    elif kind == 3:
        content[at : at + length] = bytes(len(content[at : at + length]))
    if kind > 3 or bytes(content) == whole:
        for place in rng.sample(range(len(content)), 2):
            content[place] ^= rng.randrange(1, 256)
    return bytes(content)


def places(tree: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path of every value in `tree`, which consists of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def same(one: object, other: object) -> bool:
    """Whether two trees that contain tensors have equal values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def changed(tree: object, path: tuple[object, ...], change: Callable[[object], object]) -> object:
    """Returns `tree` with the value at `path` changed."""
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = changed(tree[path[0]], path[1:], change)
    return copy
