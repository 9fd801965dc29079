"""`selva-train extract`: computes everything that no stage trains, once.

Worker processes decode. This process runs the networks, and only it writes. An unusable clip is recorded with its
reason and never stops the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from selva_bundle.atomic import atomic_write
from selva_bundle.lengths import SequenceRules
from selva_ref.model.presets import Preset
from selva_ref.pipeline import sequence_rules
from selva_ref.training.data.arrays import Shape, layout, open_array
from selva_ref.training.data.clips import Example, Reader
from selva_ref.training.data.frozen import FrozenNetworks, text_features
from selva_ref.training.data.listing import Listed, fingerprint, read_lists
from selva_ref.training.data.store import (
    DONE,
    DataDescription,
    label_names,
    read_description,
    read_outcomes,
    write_description,
    write_table,
)
from selva_ref.training.errors import TrainingError
from selva_ref.training.workers import map_in_order

FLUSH_CLIPS = 16
"""Number of clips between flushes of the features to disk; the journal is written after each flush."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What to extract, from where, and how."""

    preset: Preset
    videos: Path
    """Folder of `<id>.mp4` files."""
    lists: tuple[Path, ...]
    """TSV files with the columns `id` and `label`."""
    checkpoints: Path
    """Folder with the teacher, the VAE and both text towers."""
    out: Path
    duration_s: float
    """Length of every clip, seconds."""
    workers: int = 0
    """Number of additional processes that decode."""
    device: str = "cpu"
    precision: str = "fp32"
    """Precision of the teacher's matrix products; the VAE is always float32."""


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """The result of an extraction."""

    ready: int
    skipped: dict[str, int]
    """Kind ("missing", "broken", "short", "silent") → number of clips."""
    skipped_list: Path
    """TSV file: id, label, kind, reason."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.skipped.items()))
        tail = f" ({kinds}): {self.skipped_list}" if kinds else ""
        return f"{self.ready} clips ready, {sum(self.skipped.values())} skipped{tail}"


def extract(request: ExtractRequest, progress: Progress) -> Extracted:
    """Computes what is missing in `request.out`; repeating a request resumes it where it stopped.

    Raises:
        TrainingError: the list, the folder or the duration is unusable, or there is no usable clip.
        CheckpointError: a checkpoint is missing or does not fit.
    """
    rules, listed = sequence_rules(request.preset), read_lists(request.lists)
    _prepare_folder(request, rules, listed)
    done = read_outcomes(request.out).keys()
    todo = [row for row in range(len(listed)) if row not in done]
    if todo:
        _extract_text(request, label_names(listed))
        _extract_clips(request, rules, listed, todo, progress)
    return _summary(request.out, listed)


def _prepare_folder(request: ExtractRequest, rules: SequenceRules, listed: list[Listed]) -> None:
    if not rules.min_duration_s <= request.duration_s <= rules.max_duration_s:
        limits = f"{rules.min_duration_s} to {rules.max_duration_s} s"
        raise TrainingError(f"duration {request.duration_s} s: must be from {limits}")
    if not request.videos.is_dir():
        raise TrainingError(f"{request.videos}: no such folder")
    description = DataDescription(
        preset=request.preset.name,
        duration_s=request.duration_s,
        videos=str(request.videos.resolve()),
        list_sha256=fingerprint(listed),
    )
    if (request.out / "data.json").exists():
        if read_description(request.out) != description:
            raise TrainingError(f"{request.out}: was started with another preset, duration, list or folder of videos")
        return
    request.out.mkdir(parents=True, exist_ok=True)
    write_table(request.out / "list.tsv", ("id", "label"), [(clip.id, clip.label) for clip in listed])
    write_description(request.out, description)


def _extract_text(request: ExtractRequest, labels: list[str]) -> None:
    if (request.out / "text_clip.npy").exists():
        return
    features = text_features(request.preset, request.checkpoints, labels, torch.device(request.device))
    for name, array in features.items():  # text_clip is written last, so its presence means all are there
        with atomic_write(request.out / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)


def _extract_clips(
    request: ExtractRequest, rules: SequenceRules, listed: list[Listed], todo: list[int], progress: Progress
) -> None:
    networks = FrozenNetworks(request.preset, request.checkpoints, torch.device(request.device), request.precision)
    arrays = layout(request.preset, request.duration_s, len(listed), len(label_names(listed)))
    rows = {name: _rows(request.out, name, *arrays[name]) for name in ("posterior", "teacher")}
    read = Reader(
        paths=tuple(request.videos / clip.file for clip in listed), rules=rules, duration_s=request.duration_s
    )
    done = len(listed) - len(todo)
    progress("extract", done, len(listed))
    with _journal(request.out / "outcome.tsv", tuple(rows.values())) as write_outcome:
        for row, found in _read_all(read, todo, request.workers):
            if isinstance(found, Example):
                for name, features in networks(found).items():
                    rows[name][row] = features
            write_outcome(row, DONE if isinstance(found, Example) else found)
            done += 1
            progress("extract", done, len(listed))


def _rows(folder: Path, name: str, dtype: type, shape: Shape) -> np.memmap:
    path, sizes = folder / f"{name}.npy", tuple(size for size in shape if size is not None)
    if not path.exists():
        with atomic_write(path) as temporary:
            np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=sizes)  # takes space as it fills
    return open_array(path, dtype, shape, mode="r+")


@contextmanager
def _journal(path: Path, arrays: tuple[np.memmap, ...]) -> Iterator[Callable[[int, str], None]]:
    """Records outcomes after flushing their features: every few clips, and the rest on leaving, even after an error."""
    path.touch()
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind(b"\n") + 1])  # remove an incomplete last line
    waiting: list[str] = []

    def write_outcome(row: int, outcome: str) -> None:
        waiting.append(f"{row}\t{outcome}\n")
        if len(waiting) >= FLUSH_CLIPS:
            flush()

    def flush() -> None:
        for array in arrays:
            array.flush()
        with path.open("a", encoding="utf-8") as file:
            file.writelines(waiting)
        waiting.clear()

    try:
        yield write_outcome
    finally:
        flush()


def _read_all(read: Reader, todo: list[int], workers: int) -> Iterator[tuple[int, Example | str]]:
    """Reads all of `todo` in order, even if a video crashes the decoder and with it a worker process."""
    done, alone = 0, False
    while done < len(todo):
        try:
            for found in map_in_order(
                read, todo[done:], workers=1 if alone else workers, ahead=0 if alone else 2 * workers
            ):
                yield found
                done += 1
        except BrokenProcessPool:
            if alone:  # so this clip caused the crash
                yield todo[done], f"broken: {read.paths[todo[done]]}: crashes the decoder"
                done += 1
            alone = not alone


def _summary(folder: Path, listed: list[Listed]) -> Extracted:
    outcomes = read_outcomes(folder)
    skipped = [(clip, outcomes[row].partition(": ")) for row, clip in enumerate(listed) if outcomes[row] != DONE]
    path = folder / "skipped.tsv"
    table = [(clip.id, clip.label, kind, reason) for clip, (kind, _, reason) in skipped]
    write_table(path, ("id", "label", "kind", "reason"), table)
    if len(table) == len(listed):
        raise TrainingError(f"no clip is usable; {path} gives the reasons, the first is: {table[0][3]}")
    kinds = Counter(kind for _, _, kind, _ in table)
    return Extracted(ready=len(listed) - len(table), skipped=dict(kinds), skipped_list=path)
