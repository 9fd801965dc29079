"""Files of a run that end with their own SHA-256, so that damage is found before anything is used.

`torch.load` does not check the checksums of the zip that it reads. The hash follows that zip in the same file. So a
kill cannot come between the two, and PyTorch reads the file as if the hash were not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from selva_bundle.atomic import atomic_write
from selva_ref.weights.checkpoints import file_sha256

_MARK = b"\nsha256:"
_TAIL_BYTES = len(_MARK) + 64


def save_hashed(content: object, path: Path) -> None:
    """Replaces the file with `content`, completely or not at all."""
    with atomic_write(path) as temporary:
        torch.save(content, temporary)
        tail = _MARK + file_sha256(temporary).encode()
        with temporary.open("ab") as file:
            file.write(tail)


def load_hashed(path: Path) -> object:
    """Loads a file of `save_hashed` on the CPU; never unpickles anything but tensors and plain values.

    Raises:
        ValueError: the file is damaged, has no hash, or holds something else.
    """
    with path.open("rb") as file:
        _check_hash(file)
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that this project did not write can make torch raise almost anything
            raise ValueError("holds something other than tensors and plain values") from error


def _check_hash(file: BinaryIO) -> None:
    size = file.seek(0, 2) - _TAIL_BYTES
    file.seek(max(0, size))
    tail = file.read()
    if size < 0 or not tail.startswith(_MARK):
        raise ValueError("it has no hash: damaged, or written by an older version")
    file.seek(0)
    digest = hashlib.sha256()
    while size and (chunk := file.read(min(size, 1 << 20))):
        digest.update(chunk)
        size -= len(chunk)
    if tail != _MARK + digest.hexdigest().encode():
        raise ValueError("damaged: its hash does not match its content")


def check_tensors(given: object, wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns `given` if it has the names, shapes and types of `wanted`, and only finite values.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(given, Mapping) or given.keys() != wanted.keys():
        raise ValueError("the tensors have other names")
    for name, tensor in wanted.items():
        found = given[name]
        if not isinstance(found, Tensor) or found.layout != torch.strided or found.is_meta:
            raise ValueError(f"{name} is not a tensor")
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            wrong, right = (f"{tuple(t.shape)} {t.dtype}" for t in (found, tensor))
            raise ValueError(f"{name} is {wrong}, not {right}")
        if not found.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
    return given
