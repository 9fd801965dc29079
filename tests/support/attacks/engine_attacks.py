"""Attacks on a bundle's manifest and on the files next to its engines."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import selva_runtime
from attacks.damage import VALUES, attacks, changed, damaged, places
from selva_engines import EngineError, find_engines, inspect
from selva_engines.source import read_source

BLOB, VERSION = b"an engine", "1.7.1.116"
LAYERS = [{"name": "x", "group": "gemm", "precision": "float16", "launches": True}]


class SmallSet:
    """The demo bundle with one fake engine, that of the decoder."""

    def __init__(self, bundle: Path) -> None:
        demo = Path(selva_runtime.__file__).with_name("demo_bundle")
        self.bundle, self.folder = bundle, bundle / "engines" / f"tensorrt-rtx-{VERSION}-portable"
        shutil.copytree(demo, bundle)
        self.folder.mkdir(parents=True)
        self.files = {
            "manifest": bundle / "manifest.json",
            "engines": self.folder / "engines.json",
            "layers": self.folder / "decoder.layers.json",
        }
        manifest = json.loads((demo / "manifest.json").read_bytes())
        manifest = {key: manifest[key] for key in manifest if key not in ("parity", "sources", "created_with")}
        self.content: dict[str, Any] = {"manifest": manifest, "layers": LAYERS}
        (self.folder / "decoder.engine").write_bytes(BLOB)
        self.write("manifest", self.content["manifest"])
        self.content["engines"] = {
            "format": "selva-engines",
            "format_version": 1,
            "target": "tensorrt-rtx",
            "version": VERSION,
            "capabilities": ["8.6", "8.9"],
            "preset": "demo",
            "precision": "fp32",
            "weights_stripped": False,
            "max_stems": 8,
            "engines": {"decoder": self.record()},
        }
        self.restore()

    def record(self) -> dict[str, Any]:
        return {
            "file": "decoder.engine",
            "sha256": hashlib.sha256(BLOB).hexdigest(),
            "bytes": len(BLOB),
            "graph": dict(read_source(self.bundle).graphs["decoder"].hashes),
            "profile": {"latents": {"min": [1, 20, 20], "opt": [1, 250, 20], "max": [8, 938, 20]}},
            "layers_file": "decoder.layers.json",
            "layers_sha256": hashlib.sha256(json.dumps(LAYERS).encode()).hexdigest(),
            "network_layers": 3,
            "engine_layers": 1,
            "operations": {"UNARY.COS": {"float32": 2}},
            "products": {"float16": 1},
            "build_s": 0.1,
        }

    def write(self, file: str, content: object) -> None:
        """Writes one of the files. Keeps the hash of the layers right, so that their content is checked."""
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.files[file].write_bytes(text)
        if file == "layers":
            engines = changed(
                self.content["engines"],
                ("engines", "decoder", "layers_sha256"),
                lambda _: hashlib.sha256(text).hexdigest(),
            )
            self.write("engines", engines)

    def restore(self) -> None:
        for file in ("manifest", "engines", "layers"):
            self.write(file, self.content[file])

    def use(self) -> None:
        """Does everything that can be done with a set: finds, reads, describes and inspects it.

        Raises:
            EngineError: the set is refused.
        """
        engines = find_engines(self.bundle, "tensorrt-rtx", VERSION, "8.6")
        assert engines.read("decoder") == BLOB, "another engine"
        assert engines.build_command
        assert json.dumps(inspect(self.bundle))


def attack_engine_sets(count: int, folder: Path, seed: int = 0, first: int = 0) -> int:
    """Damages a bundle's manifest, `engines.json` and the layers, as text and value by value."""
    small = SmallSet(folder / "bundle")

    def attack(rng: random.Random) -> None:
        file = rng.choice(list(small.files))
        content = small.content[file]
        kind = rng.randrange(4)
        if kind == 0:
            small.write(file, damaged(rng, json.dumps(content).encode()))
        elif kind == 1:
            small.write(file, b"[" * 100_000)
        else:
            path = rng.choice(places(content))
            small.write(file, changed(content, path, lambda _: rng.choice(VALUES)))
        try:
            small.use()
        finally:
            small.restore()

    return attacks(count, seed, first, attack, EngineError)
