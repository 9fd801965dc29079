"""Changes to copies of a bundle."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


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
