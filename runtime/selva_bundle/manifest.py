"""Parse the bundle's manifest.json into typed values.

No hash protects this file, so it is parsed strictly: its size is bounded, every name is plain and relative, every
number that the runtime uses is checked, and anything wrong raises `BundleError`. Unknown keys of a known format
version are ignored, so that later exporters can add keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from selva_bundle.errors import BundleError
from selva_bundle.fields import SHA256, count, items, number, section
from selva_bundle.fields import text as one_of
from selva_bundle.lengths import LongForm, SequenceRules
from selva_bundle.ports import (
    BEST,
    DRAFT,
    FLOWS,
    MMAUDIO,
    PORTS,
    QUALITIES,
    SELVA,
    SYSTEMS,
    Port,
    check_ports,
    known_sizes,
)

FORMAT = "selva-bundle"
FORMAT_VERSION = 3
"""Version 1 had the sync features at the latent rate. Version 2 had no `system`: its bundles are SelVA's, and are still
read."""
_READ_VERSIONS = (2, 3)
MAX_MANIFEST_BYTES = 4_000_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_RESERVED = ("manifest.json", "engines/")
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
_MAX_TOKEN_ID = 2**31 - 1
_MAX_FILE_BYTES = 1 << 40
_MAX_PROMPTS = 64


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Expected hash (hexadecimal) and size of a file in the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One network: its files, inputs and outputs."""

    name: str
    file: str
    data: tuple[str, ...]
    """Files that hold the graph's weights outside the ONNX file."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How prompts become token ids."""

    t5_tokenizer: str | None
    """None: the system has no T5 tower."""
    t5_max_tokens: int
    clip_tokenizer: str
    clip_tokens: int
    """Length in tokens to which every CLIP prompt is cut or padded."""
    clip_pad_id: int


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default settings, chosen by the exporter."""

    steps: int = 25
    guidance: float = 4.5
    duration_s: float = 8.0


@dataclass(frozen=True, kw_only=True)
class AverageFlow:
    """The manifest's `flow`: how the graphs of a draft are used. Their steps are jumps along mean velocities."""

    steps: int = 4
    """Default number of jumps."""
    guidance: tuple[float, float] = (1.0, 7.0)
    """The least and the most that the network was trained with."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything in manifest.json that the runtime uses."""

    preset: str
    system: str
    """"selva" or "mmaudio"."""
    precision: str
    weights: str
    """"official", "trained" or "random"."""
    notice: str
    sequence: SequenceRules
    defaults: Defaults
    long_form: LongForm
    text: TextRules
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileEntry]
    hears: tuple[str, ...]
    """Plain prompts, one for each kind of sound that a limited model knows. Empty for a model without such limits."""
    hears_not: tuple[str, ...]
    """Prompts for which a limited model is silent; one that means something like these names none of its sounds."""
    words: tuple[str, ...]
    """All words that a limited model was trained with. Empty for a model without such limits."""
    flow: AverageFlow | None
    """None: the bundle makes no drafts."""

    @property
    def qualities(self) -> tuple[str, ...]:
        """The qualities that the bundle has the graphs for. The first is the default."""
        return tuple(quality for quality in QUALITIES if FLOWS[quality][0] in self.graphs)

    @property
    def step(self) -> str:
        """Name of the graph of a step in the default quality."""
        return FLOWS[self.qualities[0]][1]


def read_manifest(path: Path) -> Manifest:
    """Parse a manifest.

    Raises:
        BundleError: the manifest cannot be read or is wrong. The message says what is wrong.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes; export the bundle again")
    try:
        return _manifest(section(_loads(raw), "the manifest"))
    except (ValueError, KeyError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise BundleError(f"{path}: {error}") from error
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise BundleError(f"{path} is damaged ({detail}); export the bundle again") from error


def _loads(raw: bytes) -> object:
    def reject_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entry = dict(pairs)
        if len(entry) != len(pairs):
            raise ValueError("a name appears twice")
        return entry

    def reject_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number")

    return json.loads(raw.decode("utf-8"), object_pairs_hook=reject_duplicates, parse_constant=reject_constant)


def _manifest(top: dict[str, Any]) -> Manifest:
    if top.get("format") != FORMAT:
        raise BundleError(f"this is not a {FORMAT} manifest; make one with selva-export")
    version = top.get("format_version")
    if version not in _READ_VERSIONS or isinstance(version, bool):
        what, fix = ("out of date", "export the bundle again") if version == 1 else ("unknown", "update selva-deploy")
        raise BundleError(f"format version {version!r} is {what}: this runtime reads {FORMAT_VERSION}; {fix}")
    system = SELVA if version == 2 else one_of(top["system"], "system", "|".join(SYSTEMS))
    files = {_file_name(name): _file_entry(name, entry) for name, entry in section(top["files"], "files").items()}
    listed = section(top["graphs"], "graphs")
    names = _graph_names(system, listed, has_flow="flow" in top)
    sequence: SequenceRules = _record(SequenceRules, section(top["sequence"], "sequence"))
    if (sequence.clip_image_size > 0) != (system == MMAUDIO):
        raise ValueError(f"sequence.clip_image_size is {sequence.clip_image_size} in a bundle of {system}")
    text = _text_rules(section(top["text"], "text"), files, with_t5=system == SELVA)
    graphs = {name: _graph(name, section(listed[name], f"graph {name}"), files) for name in names}
    defaults = _defaults(section(top.get("defaults", {}), "defaults"), sequence)
    flow = _flow(section(top["flow"], "flow"), defaults) if "flow" in top else None
    sizes = known_sizes(sequence, text.clip_tokens)
    for name, graph in graphs.items():
        check_ports(system, name, graph.inputs, graph.outputs, sizes)
    hears, hears_not = (_prompts(top.get(name, []), name) for name in ("hears", "hears_not"))
    if hears_not and not hears:
        raise ValueError("hears_not is given without hears")
    if hears_not and system == MMAUDIO:
        raise ValueError(f"hears_not in a bundle of {system}")
    return Manifest(
        preset=_string(top["preset"], "preset"),
        system=system,
        precision=one_of(top["precision"], "precision", "fp32|fp16"),
        weights=one_of(top["weights"], "weights", "official|trained|random"),
        notice=" ".join(_string(top["notice"], "notice").split()),
        sequence=sequence,
        defaults=defaults,
        long_form=_long_form(top.get("long_form"), sequence, defaults),
        text=text,
        graphs=graphs,
        files=files,
        hears=hears,
        hears_not=hears_not,
        words=_strings(top.get("words", []), "words"),
        flow=flow,
    )


def _graph_names(system: str, listed: Mapping[str, Any], *, has_flow: bool) -> list[str]:
    """Return the graphs of the bundle: those of a draft if it has `flow`, and then those of "best" may be missing."""
    left_out: tuple[str, ...] = ()
    if not has_flow:
        left_out = FLOWS[DRAFT]
        if extra := [name for name in left_out if name in listed]:
            raise ValueError(f"graph {extra[0]} without flow")
    elif FLOWS[DRAFT][0] not in PORTS[system]:
        raise ValueError(f"flow in a bundle of {system}")
    elif not any(name in listed for name in FLOWS[BEST]):
        left_out = FLOWS[BEST]
    names = [name for name in PORTS[system] if name not in left_out]
    if missing := [name for name in names if name not in listed]:
        raise ValueError(f"no graph {', '.join(missing)}")
    return names


def _record(kind: type[Any], entry: dict[str, Any]) -> Any:
    """Make a dataclass from the keys of `entry` that are its fields."""
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{name: value for name, value in entry.items() if name in known})
    except TypeError as error:
        raise ValueError(str(error).partition("() ")[2] or str(error)) from error


def _graph(name: str, entry: dict[str, Any], files: Mapping[str, FileEntry]) -> Graph:
    return Graph(
        name=name,
        file=_listed_file(entry["file"], files),
        data=tuple(_listed_file(item, files) for item in items(entry.get("data", []), f"data of graph {name}")),
        inputs=_ports(entry["inputs"], f"inputs of graph {name}"),
        outputs=_ports(entry["outputs"], f"outputs of graph {name}"),
    )


def _ports(value: object, what: str) -> tuple[Port, ...]:
    ports = []
    for item in items(value, what):
        entry = section(item, what)
        shape = tuple(items(entry["shape"], what))
        if not all(isinstance(size, str) or _is_count(size) for size in shape):
            raise ValueError(f"{what}: shape {shape}")
        ports.append(Port(name=_string(entry["name"], what), dtype=_string(entry["dtype"], what), shape=shape))
    return tuple(ports)


def _text_rules(entry: dict[str, Any], files: Mapping[str, FileEntry], *, with_t5: bool) -> TextRules:
    clip = section(entry["clip"], "text.clip")
    t5 = section(entry["t5"], "text.t5") if with_t5 else None
    counts = {"text.clip.tokens": clip["tokens"]}
    if t5 is not None:
        counts["text.t5.max_tokens"] = t5["max_tokens"]
    for what, value in counts.items():
        if not _is_count(value) or not 3 <= value <= 65536:
            raise ValueError(f"{what} is {value!r}")
    if not _is_count(clip["pad_id"]) or clip["pad_id"] > _MAX_TOKEN_ID:
        raise ValueError(f"text.clip.pad_id is {clip['pad_id']!r}")
    return TextRules(
        t5_tokenizer=None if t5 is None else _listed_file(t5["tokenizer"], files),
        t5_max_tokens=0 if t5 is None else t5["max_tokens"],
        clip_tokenizer=_listed_file(clip["tokenizer"], files),
        clip_tokens=clip["tokens"],
        clip_pad_id=clip["pad_id"],
    )


def _defaults(entry: dict[str, Any], sequence: SequenceRules) -> Defaults:
    defaults: Defaults = _record(Defaults, entry)
    ranges = {
        "steps": (1, MAX_STEPS),
        "guidance": (0, MAX_GUIDANCE),
        "duration_s": (sequence.min_duration_s, sequence.max_duration_s),
    }
    for name, (low, high) in ranges.items():
        value = getattr(defaults, name)
        kinds = int if name == "steps" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise ValueError(f"defaults.{name} is {value!r:.40}, not a number from {low:g} to {high:g}")
    return defaults


def _flow(entry: dict[str, Any], defaults: Defaults) -> AverageFlow:
    one_of(entry["kind"], "flow.kind", "average")
    steps = count(entry["steps"], "flow.steps", 1, MAX_STEPS)
    ends = items(entry["guidance"], "flow.guidance")
    if len(ends) != 2:
        raise ValueError(f"flow.guidance has {len(ends)} numbers, not 2")
    low, high = (number(end, "flow.guidance", 1.0, MAX_GUIDANCE) for end in ends)
    if not low <= defaults.guidance <= high:
        raise ValueError(f"flow.guidance {low:g} to {high:g} leaves out the default {defaults.guidance:g}")
    return AverageFlow(steps=steps, guidance=(low, high))


def _long_form(entry: object, sequence: SequenceRules, defaults: Defaults) -> LongForm:
    """Parse the section, or return the usual proportions for a bundle that was exported without one."""
    if entry is None:
        return LongForm.of(sequence, defaults.duration_s)
    long_form: LongForm = _record(LongForm, section(entry, "long_form"))
    most = sequence.lengths(defaults.duration_s).segments
    if long_form.window_segments > most:
        raise ValueError(f"long_form.window_segments is {long_form.window_segments}, above {most} of the default clip")
    return long_form


def _file_name(name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name) or name.startswith(_RESERVED):
        raise BundleError(f"the file name {name!r} is not a plain relative path inside the bundle; do not trust it")
    return name


def _file_entry(name: str, value: object) -> FileEntry:
    entry = section(value, name)
    sha256, size = entry["sha256"], entry["bytes"]
    if not isinstance(sha256, str) or not re.fullmatch(SHA256, sha256) or not _is_count(size) or size > _MAX_FILE_BYTES:
        raise ValueError(f"the entry of {name} has no SHA-256 or size")
    return FileEntry(sha256=sha256, bytes=size)


def _listed_file(value: object, files: Mapping[str, FileEntry]) -> str:
    name = _file_name(_string(value, "a file name"))
    if name not in files:
        raise BundleError(f"{name} is used but not listed under files; export the bundle again")
    return name


def _prompts(value: object, what: str) -> tuple[str, ...]:
    prompts = _strings(value, what)
    if len(prompts) > _MAX_PROMPTS:
        raise ValueError(f"{what} has {len(prompts)} prompts, more than {_MAX_PROMPTS}")
    return prompts


def _strings(value: object, what: str) -> tuple[str, ...]:
    return tuple(_string(item, what) for item in items(value, what))


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
