"""Where the weights of a preset are on the disk, and how to read them safely.

Checkpoints come from model hubs and from other people's disks. So nothing here unpickles objects, loads part of a
network, or guesses. A file is a flat set of named tensors that fits exactly; anything else is a `CheckpointError`.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor

from selva_ref import get_preset
from selva_ref.errors import CheckpointError, CheckpointNotFoundError
from selva_ref.weights.published import CHECKPOINTS, Checkpoint

RECORD = "checkpoints.json"
"""Written by `selva-fetch` next to the files: the source and SHA-256 of each."""

_NESTINGS = ("generator", "state_dict", "model")


def get_checkpoint(preset_name: str, part: str) -> Checkpoint:
    """Returns the entry of `CHECKPOINTS` for a preset and a part.

    Raises:
        ValueError: there is no such preset or part; lists the names.
    """
    parts = CHECKPOINTS[get_preset(preset_name).name]
    if part not in parts:
        raise ValueError(f"unknown part {part!r}; choose one of {', '.join(parts)}")
    return parts[part]


def find_checkpoint(directory: str | Path, part: str, preset_name: str) -> Path:
    """Path of a part's weights under `directory`; a text tower's tokenizer files are in the same folder.

    Raises:
        CheckpointNotFoundError: the file does not exist; the message says how to get it.
    """
    checkpoint = get_checkpoint(preset_name, part)
    for name in checkpoint.names:
        path = Path(directory) / name
        if path.is_file():
            return path
    if checkpoint.repo is None:
        fix = "no published file is known: train one, or put your own there"
    else:
        teacher = " --with-teacher" if part == "teacher" and get_preset(preset_name).system == "selva" else ""
        fix = f"get it with: selva-fetch --preset {preset_name}{teacher} --out {directory}"
    raise CheckpointNotFoundError(f"{directory}: no {checkpoint.file} (the {part} of preset {preset_name}); {fix}")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file on the CPU, memory-mapped if possible.

    A file that `selva-fetch` recorded must still have the recorded SHA-256. Without a record, zip files (`.pth`) are
    checked against their own checksums. `.safetensors` and older pickles have no checksums, so damage may go unnoticed
    and give wrong numbers.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: the file is damaged, was changed, holds Python objects, or is not a flat set of named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file")
    recorded = _recorded_sha256(path)
    if recorded and file_sha256(path) != recorded:
        raise CheckpointError(
            f"{path}: SHA-256 differs from {RECORD}: run selva-fetch again, or delete the entry if the file is yours"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except Exception as error:  # a damaged file can make the readers raise almost anything
        raise CheckpointError(f"{path}: not a readable checkpoint ({_reason(error)})") from error
    return _flat_tensors(path, content)


def _read_pickle(path: Path) -> object:
    is_zip = zipfile.is_zipfile(path)  # files from before PyTorch 1.6 are not, and cannot be mapped
    if is_zip:
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the checksums itself
            if damaged := archive.testzip():
                raise CheckpointError(f"checksum of {damaged} is wrong: download the file again")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _reason(error: Exception) -> str:
    if "weights_only" in str(error).lower() or "Weights only" in str(error):
        return "it is damaged, or holds Python objects other than tensors, which are never loaded"
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _flat_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Returns `content`, or the one mapping of tensors nested in it under a well-known name."""
    if _is_flat(content):
        return {name: tensor.detach() for name, tensor in content.items()}
    if isinstance(content, Mapping):
        nested = [inner for key in _NESTINGS if _is_flat(inner := content.get(key))]
        if len(nested) == 1:
            return {name: tensor.detach() for name, tensor in nested[0].items()}
        held = ", ".join(f"{key!s:.40} ({type(value).__name__})" for key, value in list(content.items())[:5])
        raise CheckpointError(f"{path}: not a flat set of named tensors; it holds {held or 'nothing'}")
    raise CheckpointError(f"{path}: not a set of named tensors but a {type(content).__name__}")


def _is_flat(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(directory: str | Path) -> dict[str, dict[str, Any]]:
    """Reads what `selva-fetch` recorded about `directory`: path -> sha256, bytes, source. Empty if none."""
    path = Path(directory) / RECORD
    try:
        files: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
        for entry in files.values():
            if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]) or entry.get("verified") not in (True, False, None):
                raise ValueError("a field has the wrong type")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not written by selva-fetch; delete it and run selva-fetch again") from error
    return files


def _recorded_sha256(path: Path) -> str | None:
    for folder in path.parents[:2]:
        entry = read_record(folder).get(path.relative_to(folder).as_posix())
        if entry:
            return str(entry["sha256"])
    return None
