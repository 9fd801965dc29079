"""The output of `selva-engines`: what was built, and layers by precision, from the records beside the engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from selva_engines.errors import EnginesMissingError
from selva_engines.profiles import describe
from selva_engines.source import BundleSource, read_source
from selva_engines.store import FOLDER, PORTABLE_CAPABILITIES, EngineSet, open_engines


def inspect(path: Path) -> list[dict[str, Any]]:
    """Verify every engine of a bundle, or the one in a file, and count its layers.

    Each entry has "engine" (its file), "target", "version", "capabilities", "bytes", "network_layers",
    "engine_layers", "kinds" (kind → precision → layers that launch a kernel), "large_products" (precision → count),
    "islands" (name → precision → layers) and "float32_products" (why some may be float32).

    Raises:
        EnginesMissingError: there are no engines at `path`.
        EngineRefusedError: an engine was altered, is incomplete or was built from another graph.
        EngineSourceError: the bundle cannot be read.
    """
    if path.is_dir():
        source = read_source(path)
        root = source.path / FOLDER
        folders = sorted(p for p in root.iterdir() if not p.name.startswith(".")) if root.is_dir() else []
        if not folders:
            raise EnginesMissingError(f"{path} has no engines; run: selva-engines {path} --target tensorrt-rtx")
        sets = [open_engines(folder, source) for folder in folders]
        return [_entry(source, engines, name) for engines in sets for name in engines.engines]
    folder = path.resolve().parent  # BUNDLE/engines/SET
    if path.suffix != ".engine" or not path.is_file() or folder.parent.name != FOLDER:
        raise EnginesMissingError(f"{path} is neither a bundle nor an engine in a bundle")
    source = read_source(folder.parent.parent)
    return [_entry(source, open_engines(folder, source), path.stem)]


def summary(engines: EngineSet) -> dict[str, Any]:
    """Summarise a set for JSON: its target, and the size, build time, layers and large products of each engine."""
    return {
        "folder": str(engines.folder),
        "target": engines.target,
        "version": engines.version,
        "capabilities": list(engines.capabilities),
        "precision": engines.precision,
        "weights_stripped": engines.weights_stripped,
        "max_stems": engines.max_stems,
        "engines": {
            name: {
                "bytes": record.bytes,
                "build_s": record.build_s,
                "network_layers": record.network_layers,
                "engine_layers": record.engine_layers,
                "large_products": dict(record.products),
            }
            for name, record in engines.engines.items()
        },
    }


def table(entries: list[dict[str, Any]]) -> str:
    """Format the entries of `inspect` as text, a few lines for each engine."""
    return "\n".join(line for entry in entries for line in _lines(entry))


def _entry(source: BundleSource, engines: EngineSet, name: str) -> dict[str, Any]:
    engines.read(name)
    record = engines.engines[name]
    description = describe(source, max_stems=engines.max_stems)[name]
    return {
        "engine": str(engines.folder / record.file),
        "target": engines.target,
        "version": engines.version,
        "capabilities": list(engines.capabilities),
        "weights_stripped": engines.weights_stripped,
        "bytes": record.bytes,
        "build_s": record.build_s,
        "network_layers": record.network_layers,
        "engine_layers": record.engine_layers,
        "kinds": _kinds(engines.read_layers(name)),
        "large_products": dict(record.products),
        "float32_products": description.float32_products,
        "islands": {island: _sum(record.operations, operations) for island, operations in description.islands.items()},
    }


def _kinds(layers: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer["launches"]:
            counts.setdefault(layer["group"], Counter())[layer["precision"]] += 1
    return {kind: dict(sorted(found.items())) for kind, found in sorted(counts.items())}


def _sum(operations: Any, names: tuple[str, ...]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name in names:
        total.update(operations.get(name, {}))
    return dict(total)


def _lines(entry: dict[str, Any]) -> list[str]:
    covers = ", ".join(entry["capabilities"]) or PORTABLE_CAPABILITIES
    products = _counts(entry["large_products"])
    reason = f" (float32: {entry['float32_products']})" if entry["float32_products"] else ""
    return [
        f"{entry['engine']}",
        f"  {entry['target']} {entry['version']}, compute capability {covers}, {entry['bytes'] / 1e6:.1f} MB"
        + (", without weights" if entry["weights_stripped"] else ""),
        f"  layers: {entry['network_layers']} in the network, {entry['engine_layers']} in the engine",
        *(f"    {kind:<15} {_counts(found)}" for kind, found in entry["kinds"].items()),
        f"  large products: {products}{reason}",
        *(f"  {island}: {_counts(found)}" for island, found in entry["islands"].items()),
    ]


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in found.items() if count) or "none"
