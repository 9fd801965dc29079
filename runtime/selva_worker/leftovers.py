"""Unfinished files of a job whose engine ends in the middle of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def remove_leftovers(request: Mapping[str, Any], beginning: str) -> None:
    """Remove the files whose names begin so from all folders that the request writes to."""
    folders = {Path(request["out"])} if "out" in request else set()
    folders |= {Path(path).parent for path in request.get("timelines", ())}
    for folder in folders:
        with suppress(OSError):
            for path in folder.glob(f"{beginning}-*"):
                path.unlink(missing_ok=True)
