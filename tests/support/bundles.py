"""Exports of the demo presets, and changes to copies of a bundle."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def export_demo(folder: Path, name: str) -> None:
    """Exports the bundle called "fp32", "fp16", "mmaudio-fp32" or "mmaudio-fp16", with random weights."""
    from selva_export.bundle import ExportRequest, export_bundle
    from selva_ref import get_preset

    *system, precision = name.split("-")
    preset = get_preset("_".join(("demo", *system)))
    export_bundle(ExportRequest(preset=preset, precision=precision, checkpoints=None, out=folder / name))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest."""
    edit_json(bundle / "manifest.json", change)


def add_file(bundle: Path, name: str, data: bytes = b"data") -> None:
    """Writes a file and lists it in the manifest with the right hash."""
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def with_broken_graph(bundle: Path, folder: Path) -> Path:
    """A copy whose backbone is not a graph, although its hash is right."""
    copy = shutil.copytree(bundle, folder / "bundle")
    add_file(copy, "graphs/video_backbone.onnx", b"no graph")
    return copy
