"""Precomputed features on disk: plain `.npy` files, memory-mapped, one row per listed clip.

    data.json           preset, duration, folder of videos, SHA-256 of the list
    list.tsv            the clips, row by row
    outcome.tsv         row, "ok" or why it was skipped; appended to after the features are on disk
    posterior.npy       float32 (rows, 2, T, Z): mean and deviation of the VAE's posterior
    teacher.npy         float16 (rows, N, D): the teacher on the clip alone
    text_*.npy          T5 and CLIP features, one row per label

`outcome.tsv` is the journal from which extraction resumes: a row that is not in it is not done. Frames are not stored
(30 MB per clip at 224 pixels) but decoded during training.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selva_ref.model.presets import PRESETS
from selva_ref.pipeline import sequence_rules
from selva_ref.training.data.arrays import layout, open_array
from selva_ref.training.data.listing import Listed, fingerprint, read_lists
from selva_ref.training.errors import TrainingError

FORMAT = 1
DONE = "ok"
_OUTCOME = re.compile(r"(?P<row>[0-9]{1,9})\t(?P<outcome>ok|(missing|broken|short|silent): .*)")
Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """The contents of `data.json`."""

    preset: str
    duration_s: float
    """Length of every clip, seconds."""
    videos: str
    """Folder of the videos, absolute."""
    list_sha256: str
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Features of a label from the two text towers."""

    t5: Array
    """(L, D), padded with zeros to the longest label of the folder."""
    t5_mask: NDArray[np.bool_]
    """(L,), true for real tokens."""
    clip: Array
    """(L, D)."""


def read_description(folder: Path) -> DataDescription:
    """Reads `data.json`.

    Raises:
        TrainingError: `selva-train extract` did not write the file.
    """
    path = folder / "data.json"
    try:
        description = DataDescription(**json.loads(path.read_text(encoding="utf-8")))
        if wrong := _wrong_field(description):
            raise ValueError(f"{wrong} {getattr(description, wrong)!r:.60}")
    except FileNotFoundError as error:
        raise TrainingError(f"{folder}: no data.json; create the folder with: selva-train extract") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"{path}: not written by selva-train extract ({error}); extract into a new folder"
        ) from error
    if description.format != FORMAT:
        raise TrainingError(f"{path}: format {description.format}, but this version reads {FORMAT}; extract again")
    return description


def _wrong_field(description: DataDescription) -> str | None:
    """Name of a field with the wrong type or out of range, if any."""
    duration_s, texts = description.duration_s, ("preset", "videos", "list_sha256")
    for name in texts:
        if not isinstance(getattr(description, name), str):
            return name
    if type(description.format) is not int:
        return "format"
    if description.preset not in PRESETS:
        return "preset"
    if "\0" in description.videos:
        return "videos"
    if not re.fullmatch("[0-9a-f]{64}", description.list_sha256):
        return "list_sha256"
    rules = sequence_rules(PRESETS[description.preset])
    is_number = type(duration_s) in (int, float) and math.isfinite(duration_s)
    return None if is_number and rules.min_duration_s <= duration_s <= rules.max_duration_s else "duration_s"


def write_description(folder: Path, description: DataDescription) -> None:
    """Writes `data.json`."""
    (folder / "data.json").write_text(json.dumps(asdict(description), indent=1) + "\n", encoding="utf-8")


def read_outcomes(folder: Path) -> dict[int, str]:
    """Row → "ok" or "kind: reason"; ignores an incomplete last line."""
    path = folder / "outcome.tsv"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        matches = [_OUTCOME.fullmatch(line) for line in text.split("\n")[:-1]]
        if None in matches:
            raise ValueError("a line of another form")
        return {int(match["row"]): match["outcome"] for match in matches if match}
    except ValueError as error:
        raise TrainingError(f"{path}: not written by selva-train extract; extract into a new folder") from error


class Features:
    """The usable clips of an extracted folder. Cheap to pickle: each process opens the files itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description = read_description(folder)
        self.listed = read_lists([folder / "list.tsv"])
        if fingerprint(self.listed) != self.description.list_sha256:
            raise TrainingError(f"{folder}: list.tsv does not match data.json; extract into a new folder")
        outcomes = read_outcomes(folder)
        if missing := set(range(len(self.listed))) - outcomes.keys():
            raise TrainingError(f"{folder}: {len(missing)} clips are not extracted yet; run selva-train extract again")
        self.rows = [row for row in range(len(self.listed)) if outcomes[row] == DONE]
        if not self.rows:
            raise TrainingError(f"{folder}: every clip was skipped; {folder / 'skipped.tsv'} gives the reasons")
        self._label_rows = {label: row for row, label in enumerate(label_names(self.listed))}
        arrays = layout(
            PRESETS[self.description.preset], self.description.duration_s, len(self.listed), len(self._label_rows)
        )
        self._arrays = {name: open_array(folder / f"{name}.npy", *kind) for name, kind in arrays.items()}
        tokens = self._arrays["text_t5_tokens"]
        if not ((tokens > 0) & (tokens <= self._arrays["text_t5"].shape[1])).all():
            raise TrainingError(f"{folder / 'text_t5_tokens.npy'}: out of range; extract into a new folder")

    def __reduce__(self) -> tuple[type[Features], tuple[Path]]:
        return Features, (self.folder,)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the ids and labels of the usable clips; it determines the order of training."""
        return fingerprint([self.clip(row) for row in self.rows])

    def clip(self, row: int) -> Listed:
        """The clip of a row."""
        return self.listed[row]

    def video(self, row: int) -> Path:
        """Path of a clip's video."""
        return Path(self.description.videos) / self.clip(row).file

    def posterior(self, row: int) -> tuple[Array, Array]:
        """Mean and deviation of the latent, each (T, Z)."""
        mean, deviation = self._row("posterior", row)
        return mean, deviation

    def teacher(self, row: int) -> Array:
        """The teacher's features of a clip, (N, D)."""
        return self._row("teacher", row).astype(np.float32)

    def text(self, row: int) -> TextFeatures:
        """Features of a clip's label."""
        label = self._label_rows[self.clip(row).label]
        t5 = self._row("text_t5", label)
        return TextFeatures(
            t5=t5,
            t5_mask=np.arange(len(t5)) < self._arrays["text_t5_tokens"][label],
            clip=self._row("text_clip", label),
        )

    def _row(self, name: str, row: int) -> NDArray[np.floating]:
        values = np.array(self._arrays[name][row])
        if not np.isfinite(values).all():
            raise TrainingError(f"{self.folder / name}.npy, row {row}: values that are not finite")
        return values


def label_names(listed: list[Listed]) -> list[str]:
    """Every label once, sorted."""
    return sorted({clip.label for clip in listed})


def write_table(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Writes a TSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerows([header, *rows])
