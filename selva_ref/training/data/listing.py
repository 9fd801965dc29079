"""VGGSound-style lists: a TSV file with the columns `id` and `label`; the video of a clip is called `<id>.mp4`."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selva_ref.training.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One row of a list."""

    id: str
    label: str
    """The sound in words: the prompt that the clip is trained with."""

    @property
    def file(self) -> str:
        """File name of the video in the folder of videos."""
        return f"{self.id}.mp4"


def read_lists(paths: Iterable[Path]) -> list[Listed]:
    """Returns the rows of all lists in order, ignoring other columns.

    Raises:
        TrainingError: a file or a column is missing, or an id is empty, repeated, or not usable as a file name.
    """
    rows = [row for path in paths for row in _read(path)]
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise TrainingError(f"clip {row.id} is listed twice; remove one of its rows")
        seen.add(row.id)
    return rows


def _read(path: Path) -> list[Listed]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if not {"id", "label"} <= set(reader.fieldnames or ()):
                raise TrainingError(f"{path}: its first line must name the columns id and label, separated by tabs")
            rows = [_checked(path, reader.line_num, row["id"], row["label"]) for row in reader]
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such list") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{path}: not a TSV file in UTF-8 ({error})") from error
    if not rows:
        raise TrainingError(f"{path}: lists no clips")
    return rows


def _checked(path: Path, line: int, clip: str | None, label: str | None) -> Listed:
    if not clip or not label or not label.strip():
        raise TrainingError(f"{path}, line {line}: needs an id and a label")
    if Path(clip).name != clip or clip in (".", "..") or "\0" in clip:
        raise TrainingError(f"{path}, line {line}: {clip!r} is not a file name")
    return Listed(id=clip, label=label.strip())


def fingerprint(rows: Sequence[Listed]) -> str:
    """SHA-256 of the ids and labels in order."""
    return hashlib.sha256("\n".join(f"{row.id}\t{row.label}" for row in rows).encode()).hexdigest()
