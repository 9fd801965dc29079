"""A decoder that crashes its process. It has its own module, so that the processes that import it start quickly."""

from __future__ import annotations

import os

from selva_ref.training.data.clips import Example, Reader


class CrashingReader(Reader):
    """Crashes at two of the clips."""

    def __call__(self, row: int) -> tuple[int, Example | str]:
        """Reads a clip like `Reader`, except for the two that crash."""
        if self.paths[row].stem in ("c2", "c5"):
            os._exit(11)
        return super().__call__(row)
