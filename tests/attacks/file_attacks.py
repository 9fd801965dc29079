"""Seeded damage to the files that training, export and engines read: refused with a typed error, or without effect.

Each function attacks `count` times and raises `AssertionError` with the seed and the number that reproduce a failure:
`attack_states(1, folder, seed, first=17)` repeats attack 17.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import selva_runtime
from selva_engines import EngineError, find_engines, inspect
from selva_engines.source import read_source
from selva_ref.training.ema import WeightAverages
from selva_ref.training.errors import TrainingError
from selva_ref.training.hashed import load_hashed, save_hashed
from selva_ref.training.schedule import adamw
from selva_ref.training.settings import RunSettings
from selva_ref.training.state import resume, save_state

VALUES = (None, True, False, -1, 0, 1, 2**63, float("inf"), float("nan"), 0.5, "", "x", "../x", "x\0y", [], {}, [None])
"""What takes the place of a field: every type that JSON has, and numbers out of every range."""


def attacks(
    count: int, seed: int, first: int, attack: Callable[[random.Random], None], expected: type[Exception]
) -> int:
    """Runs the attacks; returns how many were refused. Others must have shown themselves that they changed nothing."""
    refused = 0
    for number in range(first, first + count):
        try:
            attack(random.Random(f"{seed}/{number}"))
        except expected as error:
            refused += 1
            problem = "" if str(error) and "\n" not in str(error) else f"not one line: {error!r}"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            continue
        assert not problem, f"seed {seed}, first {number}: {problem}"
    return refused


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """Two bytes changed, a part lost, doubled or zeroed; never `whole` itself."""
    content = bytearray(whole)
    kind, at, length = rng.randrange(6), rng.randrange(len(whole)), rng.randrange(1, 4000)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        del content[at : at + length]
    elif kind == 2:
        content[at:at] = content[at : at + length]
    elif kind == 3:
        content[at : at + length] = bytes(len(content[at : at + length]))
    if kind > 3 or bytes(content) == whole:
        for place in rng.sample(range(len(content)), 2):
            content[place] ^= rng.randrange(1, 256)
    return bytes(content)


def places(tree: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path of every value below `tree`, which are dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def same(one: object, other: object) -> bool:
    """Whether two trees with tensors in them have equal values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def changed(tree: object, path: tuple[object, ...], change: Callable[[object], object]) -> object:
    """`tree` with the value at `path` changed."""
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = changed(tree[path[0]], path[1:], change)
    return copy


SETTINGS = RunSettings(
    stage="stage1", preset="demo", data_sha256="1", start_sha256="2", steps=9, batch=4, learning_rate=1e-3
)


class SmallRun:
    """Two parameters, their optimiser and averages, after `steps` steps, in `folder`."""

    def __init__(self, folder: Path, steps: int = 3) -> None:
        self.path = folder / "state.pt"
        generator = torch.Generator().manual_seed(0)
        self.trained = {name: nn.Parameter(torch.randn(3, 4, generator=generator)) for name in ("a.weight", "b.weight")}
        self.optimizer = adamw(self.trained.values(), 1e-3)
        self.averages = WeightAverages(self.trained, folder / "averages")
        for _ in range(steps):
            sum((value**2).sum() for value in self.trained.values()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averages.update()
            self.averages.snapshot()
        self.steps = steps

    def save(self) -> Path:
        save_state(self.path, self.steps, SETTINGS, self.trained, self.optimizer, self.averages)
        return self.path

    def resume(self) -> int:
        return resume(self.path, SETTINGS, self.trained, self.optimizer, self.averages)


def attack_states(count: int, folder: Path, seed: int = 0, first: int = 0) -> int:
    """Damage to `state.pt` and to a snapshot, and states with a right hash but a wrong content."""
    run, fresh = SmallRun(folder / "run"), SmallRun(folder / "fresh", steps=0)
    state = run.save()
    snapshot = run.averages.snapshots()[-1]
    whole, whole_snapshot, content = state.read_bytes(), snapshot.read_bytes(), load_hashed(state)
    fresh.path = state

    def attack(rng: random.Random) -> None:
        kind = rng.randrange(3)
        if kind == 0:
            state.write_bytes(damaged(rng, whole))
        elif kind == 1:
            path = rng.choice(places(content))
            save_hashed(changed(content, path, lambda value: _other(rng, value)), state)
        else:
            snapshot.write_bytes(damaged(rng, whole_snapshot))
            try:
                run.averages.average(0.05)
            finally:
                snapshot.write_bytes(whole_snapshot)
        fresh.resume()
        assert kind == 1, "damage was taken"
        assert same(load_hashed(state), content), "a changed content was taken"

    return attacks(count, seed, first, attack, TrainingError)


def _other(rng: random.Random, value: object) -> object:
    """Another value than `value`; for a tensor sometimes one that differs in a single way."""
    if isinstance(value, Tensor) and rng.random() < 0.7:
        wrong = value.clone()
        if rng.random() < 0.5 and value.dtype.is_floating_point:
            wrong.view(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf")])
            return wrong
        return rng.choice([value.double(), value.int() if value.dtype != torch.int32 else value.half(), value[None]])
    return rng.choice([other for other in VALUES if not (type(other) is type(value) and other == value)])


BLOB, VERSION = b"an engine", "1.7.1.116"
LAYERS = [{"name": "x", "group": "gemm", "precision": "float16", "launches": True}]


class SmallSet:
    """A bundle with the demo's manifest and no graphs, and in it a made-up engine of the decoder, its only graph."""

    def __init__(self, bundle: Path) -> None:
        demo = Path(selva_runtime.__file__).with_name("demo_bundle")
        self.bundle, self.folder = bundle, bundle / "engines" / f"tensorrt-rtx-{VERSION}-portable"
        self.folder.mkdir(parents=True)
        self.files = {
            "manifest": bundle / "manifest.json",
            "engines": self.folder / "engines.json",
            "layers": self.folder / "decoder.layers.json",
        }
        manifest = json.loads((demo / "manifest.json").read_bytes())
        for part, wanted in (("graphs", "decoder"), ("files", "graphs/decoder.onnx")):
            manifest[part] = {wanted: manifest[part][wanted]}
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
        """One of the files; the hash of the layers is kept right, so that their content is what is looked at."""
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
        """All that is done with a set: found, read, described and inspected. Raises `EngineError`, or it works."""
        engines = find_engines(self.bundle, "tensorrt-rtx", VERSION, "8.6")
        assert engines.read("decoder") == BLOB, "another engine"
        assert engines.build_command
        assert json.dumps(inspect(self.bundle))


def attack_engine_sets(count: int, folder: Path, seed: int = 0, first: int = 0) -> int:
    """Damage to a bundle's manifest, to `engines.json` and to the layers, as text and value by value."""
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
