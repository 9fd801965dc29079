"""Graphs whose weights are in a separate file: listed, partly listed, changed, or outside the bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random

import onnx

from attacks.bundle_edits import HARMLESS, USELESS, Edit, relist, write

_PLACES = {
    "in the bundle": "{name}.data",
    "beside the bundle": "../../{bundle}-outside.data",
    "at an absolute path": "{folder}/{bundle}-outside.data",
    "behind a link": "{name}.data",
}


def move_weights_out(bundle: Path, random: Random) -> Edit:
    """Moves a graph's weights to a file that may be unlisted, changed, or elsewhere."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    graph = random.choice(list(manifest["graphs"]))
    file = manifest["graphs"][graph]["file"]
    place = random.choice(("in the bundle", "in the bundle", *_PLACES))
    location = _PLACES[place].format(name=Path(file).name, bundle=bundle.name, folder=bundle.parent)
    model, data = _split(bundle / file, location)
    relist(bundle, file, model)
    stored = f"{file}.data"
    digest = hashlib.sha256(data).hexdigest()
    altered = random.random() < 0.5
    if altered:
        data = bytearray(data)
        data[len(data) // 2 + 3] ^= 0x20
    inside = place in ("in the bundle", "behind a link")
    target = bundle / stored if place == "in the bundle" else bundle.with_name(f"{bundle.name}-outside.data")
    target.write_bytes(data)
    if place == "behind a link":
        (bundle / stored).symlink_to(target)
    in_files, in_data = (random.random() < 0.8, random.random() < 0.5) if inside else (False, False)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    if in_files:
        manifest["files"][stored] = {"sha256": digest, "bytes": len(data)}
    if in_data:
        manifest["graphs"][graph]["data"] = [stored]
    write(bundle / "manifest.json", json.dumps(manifest).encode())
    return Edit(
        what=f"{file}: weights {place}, in files {in_files}, in graphs[].data {in_data}, altered {altered}",
        allows=HARMLESS if place == "in the bundle" and in_files and not altered else USELESS,
    )


def _split(path: Path, location: str) -> tuple[bytes, bytes]:
    """Splits a graph into itself without its large tensors, and those tensors one after another."""
    model, data = onnx.load(path), bytearray()
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < 256:
            continue
        data += bytes(-len(data) % 4096)
        entries = {"location": location, "offset": str(len(data)), "length": str(len(tensor.raw_data))}
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return model.SerializeToString(), bytes(data)
