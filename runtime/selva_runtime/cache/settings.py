"""The size limit of a cache: a small file in its folder, and sizes as people write them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from selva_bundle.atomic import atomic_write, output_error
from selva_bundle.errors import OutputError, RequestError

FILE_NAME = "selva-cache.json"
DEFAULT_LIMIT_BYTES = 20 * 10**9
_LIMIT = "limit_bytes"
_MAX_SETTINGS_BYTES = 1000
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {f"{unit}i": 1 << 10 * power for power, unit in enumerate("kmgt", 1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?i?)b?", re.IGNORECASE | re.ASCII)


def read_limit(folder: Path) -> int:
    """Return the size limit of the cache in `folder`, in bytes.

    Raises:
        FileNotFoundError: none was set, so the default holds.
        ValueError: the file is not one of settings.
        OSError: the file cannot be read.
    """
    with (folder / FILE_NAME).open("rb") as file:
        content = file.read(_MAX_SETTINGS_BYTES)
    try:
        limit = json.loads(content)[_LIMIT]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError("no limit") from error
    if type(limit) is not int or limit < 0:
        raise ValueError(f"the limit {limit}")
    return limit


def write_limit(folder: Path, limit_bytes: int) -> None:
    """Set the size limit of the cache in `folder`.

    Raises:
        OutputError: the folder cannot be written to, or another program's file has the name of the settings.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            read_limit(folder)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({_LIMIT: limit_bytes}), encoding="utf-8")
    except ValueError as error:
        raise OutputError(f"{path} does not hold the cache's settings ({error}); remove it") from error
    except OSError as error:
        raise output_error(path, error) from error


def parsed_size(text: str) -> int:
    """Return the bytes that a text such as "50GB", "1.5 TB" or "800MiB" means.

    Raises:
        RequestError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].lower() if match else None
    factor = {**_UNITS, **_BINARY_UNITS}.get(unit) if unit is not None else None
    if match is None or factor is None:
        raise RequestError(f"{text!r} is not a size; write it as 50GB or 800MB")
    return int(float(match[1]) * factor)


def size_text(size_bytes: int) -> str:
    """Write a size for a person: "20.0 GB"."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
