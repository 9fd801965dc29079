"""Many rows through a network some at a time, and fewer at a time where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from selva_bundle.errors import DeviceMemoryError

T = TypeVar("T")


def in_batches(total: int, limit: int, run: Callable[[slice], T], on_fewer: Callable[[int], None]) -> list[T]:
    """What `run` gives for rows 0 to `total`, `limit` at a time.

    When a batch runs out of memory it is tried again with half the rows, after `on_fewer(new limit)`. A single row
    that does not fit raises `DeviceMemoryError`.
    """
    results: list[T] = []
    start = 0
    while start < total:
        rows = slice(start, min(start + limit, total))
        try:
            results.append(run(rows))
        except DeviceMemoryError:
            if rows.stop - rows.start == 1:
                raise
            limit = (rows.stop - rows.start) // 2
            on_fewer(limit)
            continue
        start = rows.stop
    return results
