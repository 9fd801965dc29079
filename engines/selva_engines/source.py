"""The bundle as this package needs it: graphs, their files and hashes, and the sequence rules.

A reader of its own, because engines are built where the runtime need not be installed. Nothing outside of the bundle
is read, whatever its manifest says.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import EngineSourceError

FORMAT_VERSION = 2
"""Of a bundle's manifest."""
Dimension = int | str
"""A fixed size or the name of an axis; "2*stems" is a multiple of one."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input of a graph."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSource:
    """One graph of a bundle."""

    name: str
    hashes: Mapping[str, str]
    """SHA-256 of its files by their names in the bundle: the ONNX file first, then its weights."""
    inputs: tuple[Port, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A bundle, as far as its manifest goes; the files are checked by `verified_graph`."""

    path: Path
    preset: str
    precision: str
    """"fp32" or "fp16"."""
    sequence: Mapping[str, float]
    default_duration_s: float
    max_tokens: int
    """Longest prompt of the T5 tower, tokens."""
    graphs: Mapping[str, GraphSource]

    def verified_graph(self, name: str) -> Path:
        """The ONNX file of a graph, it and its weights hashed; raises `EngineSourceError` when one was altered."""
        graph = self.graphs[name]
        for file, expected in graph.hashes.items():
            path = self.path / file
            try:
                found = file_sha256(path)
            except OSError as error:
                raise EngineSourceError(f"{path} cannot be read: {error.strerror}; export the bundle again") from error
            if found != expected:
                raise EngineSourceError(f"{path} was altered: its hash is not the manifest's; export the bundle again")
        return self.path / next(iter(graph.hashes))


def read_source(path: str | os.PathLike[str]) -> Source:
    """What a bundle's manifest says; raises `EngineSourceError`."""
    folder = Path(path)
    manifest = folder / "manifest.json"
    try:
        text = manifest.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineSourceError(f"{manifest} cannot be read; make a bundle with selva-export") from error
    try:
        root = folder.resolve(strict=True)
        return _parse(root, json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineSourceError(f"{manifest} is not a bundle's manifest ({reason}); export the bundle again") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(root: Path, manifest: dict[str, Any]) -> Source:
    found = manifest["format"], manifest["format_version"]
    if found != ("selva-bundle", FORMAT_VERSION):
        raise ValueError(f"{found[0]} {found[1]}, not selva-bundle {FORMAT_VERSION}")
    graphs = {name: _graph(root, name, entry, manifest["files"]) for name, entry in manifest["graphs"].items()}
    return Source(
        path=root,
        preset=str(manifest["preset"]),
        precision=str(manifest["precision"]),
        sequence={name: float(n) for name, n in manifest["sequence"].items() if not isinstance(n, str)},
        default_duration_s=float(manifest["defaults"]["duration_s"]),
        max_tokens=int(manifest["text"]["t5"]["max_tokens"]),
        graphs=graphs,
    )


def _graph(root: Path, name: str, entry: dict[str, Any], files: dict[str, Any]) -> GraphSource:
    if not name.isidentifier():
        raise ValueError(f"graph name {name!r}")
    names = [str(entry["file"]), *map(str, entry["data"])]
    for file in names:
        parts = PurePosixPath(file).parts
        inside = "\\" not in file and ".." not in parts and not PurePosixPath(file).is_absolute()
        if not inside or not (root / file).resolve().is_relative_to(root):
            raise ValueError(f"file {file!r} points outside of the bundle")
    ports = tuple(
        Port(
            name=str(port["name"]),
            dtype=str(port["dtype"]),
            shape=tuple(n if isinstance(n, int) else str(n) for n in port["shape"]),
        )
        for port in entry["inputs"]
    )
    return GraphSource(name=name, hashes={file: str(files[file]["sha256"]) for file in names}, inputs=ports)
