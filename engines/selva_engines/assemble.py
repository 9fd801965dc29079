"""Build a folder of engines from a bundle. Current engines are kept, and the folder appears when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selva_engines.build import BuiltEngine, build_engine, check_capabilities
from selva_engines.cancellable import run_cancellable
from selva_engines.device import device_capability
from selva_engines.errors import EngineError, EngineRequestError
from selva_engines.layers import Layer
from selva_engines.library import Library, load_library
from selva_engines.profiles import MAX_STEMS, EngineDescription, describe
from selva_engines.records import EngineRecord
from selva_engines.source import BundleSource, read_source
from selva_engines.store import FOLDER, FORMAT, FORMAT_VERSION, MANIFEST, EngineSet, open_engines, set_name


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """Which engines to build."""

    bundle: Path
    target: str
    """"tensorrt-rtx" or "tensorrt"."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities such as "8.6". Empty means all that TensorRT-RTX supports by default, or the GPU here for
    TensorRT."""
    graphs: tuple[str, ...] = ()
    """Names of graphs. Empty means all."""
    max_stems: int = MAX_STEMS
    """Maximum number of stems an engine takes at once."""
    strip_weights: bool = False
    """Leave the weights out of the engines. They are read from the bundle's ONNX files when an engine is loaded."""


def build_engines(request: BuildRequest, say: Callable[[str], None] = print) -> EngineSet:
    """Build the requested engines, keep the other engines of the same folder that are current, and return all of them.

    On any error, and on Ctrl-C, the bundle is left as it was.

    Raises:
        EngineLibraryError: the target's library is not installed, or needs a GPU that is not here.
        EngineSourceError: the bundle cannot be read, or a graph was altered.
        EngineRequestError: a graph or capability is unknown, or there are too many stems.
        EngineBuildError: the library cannot build a graph.
        OSError: the bundle cannot be written to.
    """
    source = read_source(request.bundle)
    descriptions = describe(source, max_stems=request.max_stems)
    if unknown := sorted(set(request.graphs) - set(descriptions)):
        raise EngineRequestError(f"the bundle has no graph {unknown[0]!r}; choose from {', '.join(descriptions)}")
    library = load_library(request.target)
    request = replace(request, capabilities=_capabilities(library, request.capabilities))
    out = source.path / FOLDER / set_name(request.target, library.version, request.capabilities)
    current = _reusable_engines(out, source, request, descriptions)
    wanted = [name for name in descriptions if name in request.graphs or not request.graphs]
    with _atomic_folder(out) as folder:
        records = {name: _copy_files(current[name], out, folder) for name in current}
        for number, name in enumerate(wanted, start=1):
            if name in current:
                say(f"[{number}/{len(wanted)}] {name:<18} is current")
                continue
            records[name] = _build(library, source, descriptions[name], request, folder)
            say(f"[{number}/{len(wanted)}] {_line(records[name])}")
        ordered = {name: records[name] for name in descriptions if name in records}
        manifest = _manifest(source, library, request, ordered)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return open_engines(out, source)


def _capabilities(library: Library, asked: tuple[str, ...]) -> tuple[str, ...]:
    if not library.target.needs_gpu:
        check_capabilities(library, asked)
        return tuple(sorted(set(asked), key=lambda c: tuple(map(int, c.split(".")))))
    here = device_capability()
    if other := sorted(set(asked) - {here}):
        raise EngineRequestError(
            f"{library.target.name} builds only for the GPU in this machine ({here}), not for {other[0]}; "
            "leave out --capability, or use --target tensorrt-rtx"
        )
    return (here,)


def _reusable_engines(
    out: Path, source: BundleSource, request: BuildRequest, descriptions: Mapping[str, EngineDescription]
) -> dict[str, EngineRecord]:
    """Return the engines in the folder that need no new build: unaltered, of the same graphs, profiles and kind."""
    if not out.is_dir():
        return {}
    try:
        engines = open_engines(out, source)
    except EngineError:
        return {}
    if engines.weights_stripped != request.strip_weights or engines.max_stems != request.max_stems:
        return {}
    return {
        name: record
        for name, record in engines.engines.items()
        if name in descriptions and record.profile == _profile(descriptions[name]) and _is_intact(engines, name)
    }


def _is_intact(engines: EngineSet, name: str) -> bool:
    try:
        engines.read(name)
        engines.read_layers(name)
    except EngineError:
        return False
    return True


def _copy_files(record: EngineRecord, out: Path, folder: Path) -> EngineRecord:
    for file in (record.file, record.layers_file):
        try:
            os.link(out / file, folder / file)
        except OSError:  # a file system without hard links
            shutil.copy2(out / file, folder / file)
    return record


def _build(
    library: Library, source: BundleSource, description: EngineDescription, request: BuildRequest, folder: Path
) -> EngineRecord:
    name = description.graph
    with source.verified_graph(name) as path:
        built = run_cancellable(
            lambda cancelled: build_engine(
                library,
                path,
                description,
                capabilities=request.capabilities,
                strip_weights=request.strip_weights,
                cancelled=cancelled,
            )
        )
    layers = json.dumps([_layer_entry(layer) for layer in built.layers], indent=0).encode()
    (folder / f"{name}.engine").write_bytes(built.blob)
    (folder / f"{name}.layers.json").write_bytes(layers)
    return _record(source, description, built, hashlib.sha256(layers).hexdigest())


def _record(
    source: BundleSource, description: EngineDescription, built: BuiltEngine, layers_sha256: str
) -> EngineRecord:
    name = description.graph
    products = {dtype: len(built.network.large_products(dtype)) for dtype in ("float16", "float32")}
    return EngineRecord(
        name=name,
        file=f"{name}.engine",
        sha256=hashlib.sha256(built.blob).hexdigest(),
        bytes=memoryview(built.blob).nbytes,
        graph=dict(source.graphs[name].hashes),
        profile=_profile(description),
        layers_file=f"{name}.layers.json",
        layers_sha256=layers_sha256,
        network_layers=built.network.layers,
        engine_layers=sum(layer.launches for layer in built.layers),
        operations=built.network.operations,
        products=products,
        build_s=round(built.parse_s + built.build_s, 2),
    )


def _profile(description: EngineDescription) -> dict[str, dict[str, tuple[int, ...]]]:
    return {item.name: dict(zip(("min", "opt", "max"), item.shapes, strict=True)) for item in description.inputs}


def _layer_entry(layer: Layer) -> dict[str, Any]:
    return {"group": layer.group, "precision": layer.precision, "launches": layer.launches, **asdict(layer)}


def _manifest(
    source: BundleSource, library: Library, request: BuildRequest, records: Mapping[str, EngineRecord]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "target": library.target.name,
        "version": library.version,
        "capabilities": list(request.capabilities),
        "preset": source.preset,
        "precision": source.precision,
        "weights_stripped": request.strip_weights,
        "max_stems": request.max_stems,
        "engines": {
            name: {key: value for key, value in asdict(record).items() if key != "name"}
            for name, record in records.items()
        },
    }


def _line(record: EngineRecord) -> str:
    products = ", ".join(f"{count} {dtype}" for dtype, count in record.products.items() if count)
    return (
        f"{record.name:<18} {record.bytes / 1e6:8.1f} MB  {record.build_s:6.1f} s  "
        f"layers {record.network_layers} → {record.engine_layers}, large products {products or 'none'}"
    )


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`. It replaces `out` at the end, or is removed on any error or interrupt."""
    made_root = not out.parent.exists()
    out.parent.mkdir(exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        _replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if made_root and not any(out.parent.iterdir()):
            out.parent.rmdir()
        raise


def _replace(partial: Path, out: Path) -> None:
    """Replace a folder. The old one is renamed first, because a folder cannot be renamed over one with files."""
    old = partial.with_name(f"{partial.name}.old")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
