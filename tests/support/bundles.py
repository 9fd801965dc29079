"""Exports of the demo presets, the graphs they have, and changes to copies of a bundle."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selva_bundle.ports import BEST, DRAFT, FLOWS, PORTS, SELVA

GRAPHS = tuple(name for name in PORTS[SELVA] if name not in FLOWS[DRAFT])
"""Those of a bundle without drafts."""


def export_demo(folder: Path, name: str) -> None:
    """Exports "fp32", "fp16", or those of MMAudio ("mmaudio-fp32") or with drafts ("both-fp32"): random weights."""
    from selva_export.bundle import ExportRequest, export_bundle
    from selva_ref import get_preset

    kind, _, precision = name.rpartition("-")
    preset = get_preset("demo_mmaudio" if kind == "mmaudio" else "demo")
    quality = "both" if kind == "both" else None
    request = ExportRequest(preset=preset, precision=precision, checkpoints=None, out=folder / name, quality=quality)
    export_bundle(request)


def without_best(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle with drafts that makes nothing else."""
    copy = Path(shutil.copytree(bundle, folder / "drafts"))

    def leave_out(manifest: dict[str, Any]) -> None:
        for name in FLOWS[BEST]:
            file = manifest["graphs"].pop(name)["file"]
            del manifest["files"][file]
            (copy / file).unlink()

    edit(copy, leave_out)
    return copy


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
