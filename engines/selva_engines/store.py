"""Engines on disk, and the checks before one is loaded.

    BUNDLE/engines/<target>-<version>-<capability>/engines.json
                                                   NAME.engine
                                                   NAME.layers.json

An engine is executable content for one library version and some GPUs. `engines.json` says which. It also has the
SHA-256 of every engine and of the graph it was built from. It is written last, and the folder gets its name when it is
complete. The bundle's own manifest does not change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selva_bundle.fields import count, flag, items, parse, section, text
from selva_engines.errors import EngineRefusedError, EnginesMissingError
from selva_engines.records import EngineRecord, parse_layer_table, parse_record
from selva_engines.source import BundleSource, read_source

FOLDER = "engines"
MANIFEST = "engines.json"
FORMAT = "selva-engines"
FORMAT_VERSION = 1
PORTABLE = "portable"
"""Label of engines for all capabilities that TensorRT-RTX builds for by default."""
PORTABLE_CAPABILITIES = "8.0, 8.6, 8.9 and 12.x"
_PORTABLE = re.compile(r"8\.[069]|12\.\d")
_ONLY_ASKED_FOR = "7.5"
"""Capability that TensorRT-RTX knows too, but has to be asked for. It knows no others: not 9.0 (H100), not 10.0."""


@dataclass(frozen=True, kw_only=True)
class EngineSet:
    """The engines of one folder."""

    folder: Path
    source: BundleSource
    target: str
    version: str
    capabilities: tuple[str, ...]
    """Compute capabilities such as "8.6". Empty means portable."""
    precision: str
    weights_stripped: bool
    max_stems: int
    engines: Mapping[str, EngineRecord]

    @property
    def build_command(self) -> str:
        """The command that builds these engines again."""
        return build_command(self.source.path, self.target, self.capabilities)

    def covers(self, capability: str) -> bool:
        """Whether a GPU of this capability may load these engines."""
        if self.capabilities:
            return capability in self.capabilities
        return _PORTABLE.fullmatch(capability) is not None

    def read(self, name: str) -> bytes:
        """Read an engine. Check that it is unaltered and belongs to the graph that is now in the bundle.

        Raises:
            EnginesMissingError: the set has no such engine.
            EngineRefusedError: the engine must not be loaded. The message says which command to run.
        """
        record = self._record(name)
        graph = self.source.graphs.get(name)
        if graph is None or dict(graph.hashes) != dict(record.graph):
            raise EngineRefusedError(
                f"{self.folder / record.file} was built from another {name} graph; run: {self.build_command}"
            )
        return self._read_verified(record.file, record.sha256)

    def read_layers(self, name: str) -> list[dict[str, Any]]:
        """Read the layers of an engine as dictionaries: name, kind, precision, inputs, constants, outputs.

        Raises:
            EnginesMissingError: the set has no such engine.
            EngineRefusedError: the file was altered or cannot be parsed.
        """
        record = self._record(name)
        content = self._read_verified(record.layers_file, record.layers_sha256)
        try:
            return parse_layer_table(content)
        except (ValueError, KeyError) as error:
            path = self.folder / record.layers_file
            raise EngineRefusedError(f"{path} cannot be parsed ({error}); run: {self.build_command}") from error

    def _record(self, name: str) -> EngineRecord:
        if name not in self.engines:
            raise EnginesMissingError(f"{self.folder} has no engine for {name}; run: {self.build_command}")
        return self.engines[name]

    def _read_verified(self, file: str, sha256: str) -> bytes:
        path = self.folder / file
        try:
            blob = path.read_bytes()
        except OSError as error:
            raise EngineRefusedError(f"{path} cannot be read: {error.strerror}; run: {self.build_command}") from error
        if hashlib.sha256(blob).hexdigest() != sha256:
            raise EngineRefusedError(f"{path} was altered or is incomplete; remove it and run: {self.build_command}")
        return blob


def find_engines(bundle: str | Path, target: str, version: str, capability: str) -> EngineSet:
    """Find the engines of a bundle that this library version may run on a GPU of this capability, such as "8.6".

    A set that was built for exactly this capability is preferred to a portable one.

    Raises:
        EngineSourceError: the bundle cannot be read.
        EnginesMissingError: the bundle has no engines for the target.
        EngineRefusedError: its engines are for another version or capability, or are incomplete, or TensorRT-RTX does
            not know the capability.
    """
    source = read_source(bundle)
    if target == "tensorrt-rtx" and capability != _ONLY_ASKED_FOR and not _PORTABLE.fullmatch(capability):
        raise EngineRefusedError(
            f"TensorRT-RTX does not support compute capability {capability}; "
            f"run: {build_command(source.path, 'tensorrt', ())}"
        )
    root = source.path / FOLDER
    folders = sorted(p for p in root.iterdir() if p.name.startswith(f"{target}-")) if root.is_dir() else []
    folders = [p for p in folders if target != "tensorrt" or not p.name.startswith("tensorrt-rtx-")]
    command = build_command(source.path, target, ())
    if not folders:
        raise EnginesMissingError(f"{source.path} has no {target} engines; run: {command}")
    found, broken = [], []
    for folder in folders:
        try:
            found.append(open_engines(folder, source))
        except EngineRefusedError as error:
            broken.append(error)
    return _choose(found, broken, target, version, capability, command)


def open_engines(folder: Path, source: BundleSource) -> EngineSet:
    """Open the set in one folder.

    Raises:
        EngineRefusedError: its engines.json is missing or cannot be parsed, or the folder is outside the bundle.
    """
    fix = "remove the folder and run selva-engines again"
    try:
        if not folder.resolve().is_relative_to(source.path):
            raise EngineRefusedError(f"{folder} points outside the bundle; {fix}")
        data = parse((folder / MANIFEST).read_text(encoding="utf-8"))
    except EngineRefusedError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a link to itself
        raise EngineRefusedError(f"{folder} is incomplete: it has no readable {MANIFEST}; {fix}") from error
    try:
        return _parse(folder, source, section(data, "the file"))
    except (ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineRefusedError(f"{folder / MANIFEST} cannot be parsed ({reason}); {fix}") from error


def set_name(target: str, version: str, capabilities: Sequence[str]) -> str:
    """Return the folder name of a set: "tensorrt-rtx-1.7.1.116-portable", "tensorrt-11.4.0.1-sm90"."""
    label = "-".join(f"sm{capability.replace('.', '')}" for capability in capabilities) or PORTABLE
    return f"{target}-{version}-{label}"


def build_command(bundle: Path, target: str, capabilities: Sequence[str]) -> str:
    """Return the command line that builds a set."""
    # TensorRT builds for the GPU that is here, so the command names no capability
    wanted = "" if target == "tensorrt" else "".join(f" --capability {c}" for c in capabilities)
    return f"selva-engines {bundle} --target {target}{wanted}"


def _choose(
    found: list[EngineSet],
    broken: list[EngineRefusedError],
    target: str,
    version: str,
    capability: str,
    command: str,
) -> EngineSet:
    same_version = [engines for engines in found if engines.version == version]
    fitting = [engines for engines in same_version if engines.covers(capability)]
    if fitting:
        return max(fitting, key=lambda engines: bool(engines.capabilities))
    if same_version:
        have = ", ".join(c for engines in same_version for c in engines.capabilities) or PORTABLE_CAPABILITIES
        raise EngineRefusedError(
            f"the {target} engines are for compute capability {have}, but this GPU has {capability}; "
            f"run: {command}" + ("" if target == "tensorrt" else f" --capability {capability}")
        )
    if found:
        have = ", ".join(sorted({engines.version for engines in found}))
        raise EngineRefusedError(f"the engines are for {target} {have}, but this is {version}; run: {command}")
    raise broken[0]


def _parse(folder: Path, source: BundleSource, data: dict[str, Any]) -> EngineSet:
    if data["format"] != FORMAT or count(data["format_version"], "format_version") != FORMAT_VERSION:
        raise ValueError("unknown format or format_version")
    capabilities = items(data["capabilities"], "capabilities")
    return EngineSet(
        folder=folder,
        source=source,
        target=text(data["target"], "target", r"[a-z][a-z-]*"),
        version=text(data["version"], "version", r"[0-9][0-9A-Za-z.+]*"),
        capabilities=tuple(text(item, "a capability", r"\d{1,2}\.\d") for item in capabilities),
        precision=text(data["precision"], "precision", r"\w+"),
        weights_stripped=flag(data["weights_stripped"], "weights_stripped"),
        max_stems=count(data["max_stems"], "max_stems", low=1, high=64),
        engines={name: parse_record(name, entry) for name, entry in section(data["engines"], "engines").items()},
    )
