"""What this package needs of a bundle: graphs, their files and hashes, and the sequence rules."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BundleError
from selva_bundle.lengths import SequenceRules
from selva_bundle.ports import Port
from selva_engines.errors import EngineSourceError


@dataclass(frozen=True, kw_only=True)
class GraphSource:
    """One graph of a bundle."""

    name: str
    hashes: Mapping[str, str]
    """File in the bundle → SHA-256. The ONNX file comes first, then its weights."""
    inputs: tuple[Port, ...]


@dataclass(frozen=True, kw_only=True)
class BundleSource:
    """What a bundle's manifest says. The files themselves are checked by `verified_graph`."""

    path: Path
    preset: str
    precision: str
    """"fp32" or "fp16"."""
    sequence: SequenceRules
    default_duration_s: float
    max_tokens: int
    """Longest prompt of the T5 tower in tokens."""
    graphs: Mapping[str, GraphSource]

    @contextmanager
    def verified_graph(self, name: str) -> Iterator[Path]:
        """Yield the path of a graph's ONNX file. It and its weights are those that were hashed until the block ends.

        Raises:
            EngineSourceError: a file was altered or cannot be read.
        """
        with _as_source_errors(), Bundle.open(self.path).verified_graph(name) as path:
            yield path


def read_source(path: str | os.PathLike[str]) -> BundleSource:
    """Read a bundle's manifest.

    Raises:
        EngineSourceError: it cannot be read or is not a bundle's manifest.
    """
    with _as_source_errors():
        bundle = Bundle.open(path)
    manifest = bundle.manifest
    return BundleSource(
        path=bundle.path,
        preset=manifest.preset,
        precision=manifest.precision,
        sequence=manifest.sequence,
        default_duration_s=manifest.defaults.duration_s,
        max_tokens=manifest.text.t5_max_tokens,
        graphs={
            name: GraphSource(
                name=name,
                hashes={file: manifest.files[file].sha256 for file in (graph.file, *graph.data)},
                inputs=graph.inputs,
            )
            for name, graph in manifest.graphs.items()
        },
    )


@contextmanager
def _as_source_errors() -> Iterator[None]:
    try:
        yield
    except BundleError as error:
        raise EngineSourceError(str(error)) from error
