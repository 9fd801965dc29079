"""Read what this package needs from a bundle: graphs, their files and hashes, and the sequence rules.

This package has its own reader, because engines may be built where the runtime is not installed. Nothing outside of
the bundle is read, whatever its manifest says.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from selva_bundle.fields import SHA256, count, items, number, parse, section, text
from selva_bundle.manifest import FORMAT, FORMAT_VERSION
from selva_bundle.ports import Port
from selva_engines.errors import EngineSourceError

_WHOLE = ("sample_rate_hz", "hop", "fps", "clip_fps", "segment_frames", "segment_step")
_SECONDS = ("min_duration_s", "max_duration_s")
_TYPES = r"float32|float16|int64|int32|uint8|bool"


@dataclass(frozen=True, kw_only=True)
class GraphSource:
    """One graph of a bundle."""

    name: str
    hashes: Mapping[str, str]
    """File in the bundle → SHA-256. The ONNX file comes first, then its weights."""
    inputs: tuple[Port, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a bundle's manifest says. The files themselves are checked by `verified_graph`."""

    path: Path
    preset: str
    precision: str
    """"fp32" or "fp16"."""
    sequence: Mapping[str, float]
    """The rules from which lengths are computed."""
    default_duration_s: float
    max_tokens: int
    """Longest prompt of the T5 tower in tokens."""
    graphs: Mapping[str, GraphSource]

    def verified_graph(self, name: str) -> Path:
        """Check the hashes of a graph and its weights, and return the path of its ONNX file.

        Raises:
            EngineSourceError: a file was altered or cannot be read.
        """
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
    """Read a bundle's manifest.

    Raises:
        EngineSourceError: it cannot be read or is not a bundle's manifest.
    """
    folder = Path(path)
    manifest = folder / "manifest.json"
    try:
        content = manifest.read_text(encoding="utf-8")
        root = folder.resolve(strict=True)
    except (OSError, ValueError) as error:
        raise EngineSourceError(f"{manifest} cannot be read; make a bundle with selva-export") from error
    try:
        return _parse(root, section(parse(content), "the file"))
    except (ValueError, KeyError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = f"{type(error).__name__}: {error}"
        raise EngineSourceError(f"{manifest} is not a bundle's manifest ({reason}); export the bundle again") from error


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(root: Path, manifest: dict[str, Any]) -> Source:
    found = manifest["format"], count(manifest["format_version"], "format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{found[0]} {found[1]}, not {FORMAT} {FORMAT_VERSION}")
    files = section(manifest["files"], "files")
    graphs = {name: _graph(root, name, entry, files) for name, entry in section(manifest["graphs"], "graphs").items()}
    rules = _rules(section(manifest["sequence"], "sequence"))
    defaults, t5 = (
        section(manifest["defaults"], "defaults"),
        section(section(manifest["text"], "text")["t5"], "text.t5"),
    )
    return Source(
        path=root,
        preset=text(manifest["preset"], "preset", r"[\w-]+"),
        precision=text(manifest["precision"], "precision", "fp32|fp16"),
        sequence=rules,
        default_duration_s=number(defaults["duration_s"], "defaults.duration_s", *(rules[name] for name in _SECONDS)),
        max_tokens=count(t5["max_tokens"], "text.t5.max_tokens", low=1, high=65536),
        graphs=graphs,
    )


def _rules(sequence: dict[str, Any]) -> dict[str, float]:
    rules: dict[str, float] = {n: count(sequence[n], f"sequence.{n}", low=1, high=1_000_000) for n in _WHOLE}
    low, high = (number(sequence[name], f"sequence.{name}") for name in _SECONDS)
    frames = math.floor(Fraction(low).limit_denominator(1_000_000) * int(rules["fps"]))
    if frames < rules["segment_frames"] or low > high:
        raise ValueError(f"sequence.min_duration_s is {low}")
    return rules | dict(zip(_SECONDS, (low, high), strict=True))


def _graph(root: Path, name: str, value: object, files: dict[str, Any]) -> GraphSource:
    entry = section(value, name)
    names = [
        text(file, f"a file of {name}", r".+") for file in (entry["file"], *items(entry["data"], f"data of {name}"))
    ]
    for file in names:
        parts = PurePosixPath(file).parts
        inside = "\\" not in file and ".." not in parts and not PurePosixPath(file).is_absolute()
        if not inside or not (root / file).resolve().is_relative_to(root):
            raise ValueError(f"file {file!r} points outside of the bundle")
    return GraphSource(
        name=text(name, "the name of a graph", r"[A-Za-z_]\w*"),
        hashes={file: text(section(files[file], file)["sha256"], f"the SHA-256 of {file}", SHA256) for file in names},
        inputs=tuple(_port(port, f"an input of {name}") for port in items(entry["inputs"], f"inputs of {name}")),
    )


def _port(value: object, what: str) -> Port:
    port = section(value, what)
    return Port(
        name=text(port["name"], what, r"[\w.:/-]+"),
        dtype=text(port["dtype"], what, _TYPES),
        shape=tuple(
            text(n, what, r"([1-9]\d{0,2}\*)?[a-z_]+") if isinstance(n, str) else count(n, what, high=2**31 - 1)
            for n in items(port["shape"], what)
        ),
    )
