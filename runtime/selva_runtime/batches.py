"""Run many rows through a network in batches, and in smaller batches if memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from selva_bundle.errors import DeviceMemoryError

T = TypeVar("T")


def in_batches(
    total: int, limit: int, run: Callable[[slice], T], on_fewer: Callable[[int], None], *, few_sizes: bool = False
) -> list[T]:
    """Call `run` on rows 0 to `total`, at most `limit` at a time, and return its results.

    With `few_sizes` the sizes of batches are powers of two, because some backends set themselves up for each size. If a
    batch runs out of memory, `on_fewer(new limit)` is called and the batch is tried again with half the rows.

    Raises:
        DeviceMemoryError: not even a single row fits.
    """
    results: list[T] = []
    start = 0
    while start < total:
        most = min(limit, total - start)
        rows = slice(start, start + (1 << most.bit_length() - 1 if few_sizes else most))
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
