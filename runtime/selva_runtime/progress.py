"""How a long call reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage ("verify", "decode", "encode", "text", "select", "conditions", "step", "vocode"), the number
done and the total."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Do nothing. Used if the caller wants no progress."""
