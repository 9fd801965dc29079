"""Saves results: a JSON document and its chart, each completely or not at all, replacing those of the same setting."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from selva_bench.chart import draw
from selva_bundle.atomic import output_error


def name_of(document: dict[str, Any]) -> str:
    """A name such as cpu-small_16k-fp32: the runtime's sides, preset and precision, without date or host."""
    ours = "+".join(document["ratios"])
    return f"{ours}-{document['setting']['preset']}-{document['setting']['precision']}"


def save(document: dict[str, Any], folder: Path) -> tuple[Path, Path | None]:
    """Saves the JSON file and the chart, and returns their paths; the chart is None without matplotlib.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / name_of(document)
        text = json.dumps(document, indent=1) + "\n"
        path = _replace(stem.with_name(f"{stem.name}.json"), lambda part: part.write_text(text, encoding="utf-8"))
        try:
            return path, _replace(stem.with_name(f"{stem.name}.png"), lambda part: draw(document, part))
        except ImportError:
            return path, None
    except OSError as error:
        raise output_error(folder, error) from error


def _replace(path: Path, fill: Callable[[Path], object]) -> Path:
    part = path.with_name(f".selva-{secrets.token_hex(6)}.part")
    try:
        fill(part)
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()
    return path
