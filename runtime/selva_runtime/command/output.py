"""The output folder, checked before anything long runs and left as it was when nothing comes of it."""

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
    """The folder, made where it is not there, with room for `needed_bytes`. Raises `OutputError`.

    Folders that this made are removed again when the block fails with nothing written to them.
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
    """Make the folder and write to it, for its permissions alone do not tell whether one can."""
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
        raise OutputError(f"{folder} has {free_mb:.1f} MB free, the stems need {needed_mb:.1f} MB; make room")
