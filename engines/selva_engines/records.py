"""The entry of one engine in `engines.json`, and its table of layers. Every field is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selva_bundle.fields import SHA256, count, flag, items, number, parse, section, text

_ANY = r"[^\x00-\x1f]+"
_SIZES = ("min", "opt", "max")


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The entry of one engine in `engines.json`."""

    name: str
    file: str
    sha256: str
    bytes: int
    graph: Mapping[str, str]
    """File of the graph in the bundle → its SHA-256 when the engine was built."""
    profile: Mapping[str, Mapping[str, tuple[int, ...]]]
    """Input → "min", "opt", "max" → shape."""
    layers_file: str
    layers_sha256: str
    network_layers: int
    engine_layers: int
    """About the number of kernel launches. 0 if the library did not list the layers."""
    operations: Mapping[str, Mapping[str, int]]
    """Layers of the parsed graph: operation → precision → number."""
    products: Mapping[str, int]
    """Large matrix products and convolutions of the parsed graph: precision → number."""
    build_s: float


def parse_record(name: str, value: object) -> EngineRecord:
    """Parse a record.

    Raises:
        ValueError: a field is wrong. The message names it.
        KeyError: a field is missing.
    """
    entry = section(value, name)
    if unknown := sorted(entry.keys() - EngineRecord.__dataclass_fields__.keys() - {"name"}):
        raise ValueError(f"{name}.{unknown[0]} is unknown")
    for key, file in {"file": f"{name}.engine", "layers_file": f"{name}.layers.json"}.items():
        if entry[key] != file:
            raise ValueError(f"{name}.{key} is not {file}")
    operations = section(entry["operations"], f"{name}.operations")
    return EngineRecord(
        name=text(name, "the name of an engine", r"[A-Za-z_]\w*"),
        file=entry["file"],
        sha256=text(entry["sha256"], f"{name}.sha256", SHA256),
        bytes=count(entry["bytes"], f"{name}.bytes"),
        graph={
            file: text(sha256, f"{name}.graph", SHA256)
            for file, sha256 in section(entry["graph"], f"{name}.graph").items()
        },
        profile={
            port: _shapes(sizes, f"{name}.profile.{port}")
            for port, sizes in section(entry["profile"], f"{name}.profile").items()
        },
        layers_file=entry["layers_file"],
        layers_sha256=text(entry["layers_sha256"], f"{name}.layers_sha256", SHA256),
        network_layers=count(entry["network_layers"], f"{name}.network_layers"),
        engine_layers=count(entry["engine_layers"], f"{name}.engine_layers"),
        operations={kind: _counts(found, f"{name}.operations") for kind, found in operations.items()},
        products=_counts(entry["products"], f"{name}.products"),
        build_s=number(entry["build_s"], f"{name}.build_s"),
    )


def parse_layer_table(content: bytes) -> list[dict[str, Any]]:
    """Parse a table of layers.

    Raises:
        ValueError: a field is wrong. The message names it.
        KeyError: a field is missing.
    """
    layers = [section(layer, "a layer") for layer in items(parse(content), "the table of layers")]
    for layer in layers:
        text(layer["group"], "group", _ANY)
        text(layer["precision"], "precision", _ANY)
        flag(layer["launches"], "launches")
    return layers


def _counts(value: object, what: str) -> dict[str, int]:
    return {key: count(number_of, what) for key, number_of in section(value, what).items()}


def _shapes(value: object, what: str) -> dict[str, tuple[int, ...]]:
    """Parse three shapes of equal rank, from the smallest to the largest. No size may decrease."""
    sizes = section(value, what)
    shapes = {size: tuple(count(n, what, high=2**31 - 1) for n in items(sizes[size], what)) for size in _SIZES}
    if sizes.keys() != shapes.keys() or len({len(shape) for shape in shapes.values()}) != 1:
        raise ValueError(f"{what} does not have three shapes")
    if not all(low <= opt <= high for low, opt, high in zip(*shapes.values(), strict=True)):
        raise ValueError(f"{what} is out of order")
    return shapes
