"""The output folder. It is checked before the long work, and left as it was if nothing is written to it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selva_bundle.errors import OutputError


@contextmanager
def output_folder(path: str | os.PathLike[str], needed_bytes: int) -> Iterator[Path]:
    """Make the folder if it does not exist, and check that it has room for `needed_bytes`.

    If the block fails and nothing was written, the folders that were made are removed again.

    Raises:
        OutputError: the folder is a file, cannot be written to or has too little space.
    """
    folder = Path(path)
    created: list[Path] = []
    try:
        _prepare(folder, created)
        _check_room(folder, needed_bytes)
        yield folder
    except BaseException:
        with suppress(OSError, ValueError):
            for place in created:
                place.rmdir()
        raise


def _prepare(folder: Path, created: list[Path]) -> None:
    """Make the folder and write to it, because its permissions alone do not say whether that works."""
    try:
        created += [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"the output folder {str(folder)!r} is a file or lies in one; choose a folder") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"the output folder {str(folder)!r} cannot be written: {reason}; choose another") from error


def _check_room(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        free_mb, needed_mb = free_bytes / 1e6, needed_bytes / 1e6
        raise OutputError(f"{folder} has {free_mb:.1f} MB free, the stems need {needed_mb:.1f} MB; free some space")
