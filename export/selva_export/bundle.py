"""From checkpoints to a finished bundle: export, compare and hash, and only then move it to its final name."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from selva_bundle.manifest import FORMAT, FORMAT_VERSION, AverageFlow
from selva_bundle.ports import (
    AVERAGE_CONDITIONS,
    AVERAGE_STEP,
    BEST,
    CONDITIONS,
    DECODER,
    DRAFT,
    FLOWS,
    GUIDED_STEP,
    MMAUDIO,
    SELVA,
    TEXT_CLIP,
    TEXT_T5,
    VIDEO_BACKBONE,
    VIDEO_CLIP,
    VIDEO_POOL,
    VIDEO_SELECT,
)
from selva_export import graphs
from selva_export.errors import ExportError
from selva_export.rewrites import rewrite
from selva_export.sharing import share_files
from selva_export.signatures import Signature, example_inputs, signatures
from selva_export.to_onnx import TRACE_AXES, export_graph
from selva_export.verify import TOLERANCES, VERIFY_AXES, Parity, compare, reference_outputs
from selva_ref.demo.bounds import bounds
from selva_ref.errors import CheckpointNotFoundError
from selva_ref.model.layers import cast
from selva_ref.model.presets import Preset
from selva_ref.model.text_tokenizers import CLIP_PAD_ID, save
from selva_ref.pipeline import long_form, sequence_rules
from selva_ref.weights.checkpoints import file_sha256, find_checkpoint, read_record
from selva_ref.weights.loading import load_part, load_tokenizers
from selva_ref.weights.published import LICENCE_NOTICES

RANDOM_NOTICE = "Random weights: for latency work and tests; the sounds mean nothing."
DEMO_NOTICE = "Toy model of the selva-deploy project, MIT licence."

Makers = dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]]
_SHARED: Makers = {
    TEXT_CLIP: (graphs.TextClip, ("text_clip",)),
    GUIDED_STEP: (graphs.GuidedStep, ("generator",)),
    DECODER: (graphs.Decode, ("generator", "vae", "vocoder")),
}
MAKERS: dict[str, Makers] = {
    SELVA: {
        **_SHARED,
        TEXT_T5: (graphs.TextT5, ("text_t5",)),
        VIDEO_BACKBONE: (graphs.VideoBackbone, ("video_encoder",)),
        VIDEO_SELECT: (graphs.VideoSelect, ("video_encoder",)),
        CONDITIONS: (graphs.PrepareConditions, ("generator",)),
        AVERAGE_CONDITIONS: (graphs.PrepareConditions, ("student",)),
        AVERAGE_STEP: (graphs.AverageStep, ("student",)),
    },
    MMAUDIO: {
        **_SHARED,
        VIDEO_BACKBONE: (graphs.VideoBackbone, ("teacher",)),
        VIDEO_POOL: (graphs.VideoPool, ("teacher",)),
        VIDEO_CLIP: (graphs.VideoClip, ("clip_image",)),
        CONDITIONS: (graphs.PrepareMMAudioConditions, ("generator",)),
    },
}
"""System → graph name → its module and the parts it is made from."""
BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export."""

    preset: Preset
    precision: str
    """"fp32" or "fp16"."""
    checkpoints: Path | None
    """Folder with the weights; None: deterministic random weights."""
    out: Path
    """The bundle's folder, which must not exist yet."""
    half_weights: bool = False
    """Store the weights of a float32 bundle as float16: half the size, still computed in float32."""
    quality: str | None = None
    """The generator's graphs ("best"), the student's ("draft") or both ("both"). None: both if there is a checkpoint of
    a student, else "best"."""

    def __post_init__(self) -> None:
        if self.quality not in (None, BEST, DRAFT, BOTH):
            raise ExportError(f"unknown quality {self.quality!r}; choose one of {BEST}, {DRAFT}, {BOTH}")
        if self.quality in (DRAFT, BOTH) and AVERAGE_STEP not in MAKERS[self.preset.system]:
            raise ExportError(f"preset {self.preset.name} has no student, so no drafts: leave out --quality")
        if self.half_weights and self.precision != "fp32":
            raise ExportError("half weights need an fp32 bundle: the weights of an fp16 bundle are already float16")
        if self.precision not in TOLERANCES:
            raise ExportError(f"unknown precision {self.precision!r}; choose one of {', '.join(TOLERANCES)}")

    @property
    def graphs(self) -> dict[str, Signature]:
        """The graphs of the bundle, by name, in the order they run."""
        wanted = (BEST, DRAFT) if self.quality == BOTH or self._found_student() else (self.quality or BEST,)
        left_out = {name for quality, pair in FLOWS.items() if quality not in wanted for name in pair}
        return {name: each for name, each in signatures(self.preset).items() if name not in left_out}

    def parts(self, graph: str) -> tuple[str, ...]:
        """The parts that a graph is made from. Drafts alone need no checkpoint of the generator."""
        _, parts = MAKERS[self.preset.system][graph]
        return tuple("student" if part == "generator" and self.quality == DRAFT else part for part in parts)

    def _found_student(self) -> bool:
        """Whether nothing was said about the quality and the checkpoints have a student."""
        if self.quality is not None or self.checkpoints is None or AVERAGE_STEP not in MAKERS[self.preset.system]:
            return False
        with suppress(CheckpointNotFoundError):
            find_checkpoint(self.checkpoints, "student", self.preset.name)
            return True
        return False


def export_bundle(request: ExportRequest, say: Callable[[str], None] = print) -> list[Parity]:
    """Writes the bundle and returns how far each graph is from the reference.

    Raises:
        ExportError: the folder exists, or a graph is out of tolerance (`ParityError`). Nothing is left behind.
        CheckpointError: weights are missing, damaged or have the wrong shape.
        OSError: the folder cannot be written.
    """
    with _atomic_folder(request.out) as folder:
        table = request.graphs
        sources = _sources(request)  # first, like the tokenizers, to report missing files at once
        _write_tokenizers(request, folder / "tokenizers")
        (folder / "graphs").mkdir()
        parities: list[Parity] = []
        for number, signature in enumerate(table.values(), start=1):
            start = perf_counter()
            found = export_part(request, signature, folder / "graphs" / f"{signature.name}.onnx")
            size = sum(path.stat().st_size for path in (folder / "graphs").glob(f"{signature.name}.onnx*"))
            worst = max(p.relative_error for p in found)
            say(
                f"[{number}/{len(table)}] {signature.name:<18} {size / 1e6:8.1f} MB   rel. error {worst:.1e}   "
                f"{perf_counter() - start:5.1f} s"
            )
            parities += found
        manifest = _manifest(request, table, sources, parities, folder)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for other, size in share_files(folder, request.out.parent).items():
            say(f"{size / 1e6:.1f} MB are stored once, with those of {other}")
    return parities


def export_part(request: ExportRequest, signature: Signature, path: Path) -> list[Parity]:
    """Exports one graph: computes reference outputs in float32, then rewrites, casts, exports and compares."""
    preset = request.preset
    make, _ = MAKERS[preset.system][signature.name]
    parts = (load_part(part, preset, request.checkpoints) for part in request.parts(signature.name))
    module = make(*parts).eval()
    feeds = [example_inputs(signature, preset, axes, seed=1) for axes in VERIFY_AXES]
    cases = [(feed, reference_outputs(module, signature, feed)) for feed in feeds]
    module = rewrite(module)
    if request.precision == "fp16":
        cast(module, torch.float16)
    examples = example_inputs(signature, preset, TRACE_AXES, seed=0)
    export_graph(module, signature, examples, path, half_weights=request.half_weights)
    del module
    return compare(path, signature, cases, TOLERANCES["fp16" if request.half_weights else request.precision])


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder next to `out`. It becomes `out` at the end, or is removed on any error or interrupt."""
    if out.exists():
        raise ExportError(f"{out} already exists; remove it or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_tokenizers(request: ExportRequest, folder: Path) -> None:
    folder.mkdir()
    for name, tokenizer in load_tokenizers(request.preset, request.checkpoints).items():
        if f"text_{name}" in MAKERS[request.preset.system]:
            save(tokenizer, folder / f"{name}.json")


def _manifest(
    request: ExportRequest,
    table: dict[str, Signature],
    sources: dict[str, dict[str, str]],
    parities: list[Parity],
    folder: Path,
) -> dict[str, Any]:
    preset, text = request.preset, request.preset.text
    t5 = {"tokenizer": "tokenizers/t5.json", "max_tokens": text.t5_max_tokens}
    flow = {"flow": {"kind": "average", **asdict(AverageFlow())}} if AVERAGE_STEP in table else {}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "preset": preset.name,
        "system": preset.system,
        "precision": request.precision,
        "weights": _kind_of_weights(request, sources),
        "created_with": _versions(),
        "notice": _notice(request),
        "sequence": asdict(sequence_rules(preset)),
        **_bounds(request),
        "defaults": {
            "steps": 25 if GUIDED_STEP in table else AverageFlow().steps,
            "guidance": 4.5,
            "duration_s": preset.duration_s,
        },
        **flow,
        "long_form": asdict(long_form(preset)),
        "text": {
            **({"t5": t5} if preset.system == SELVA else {}),
            "clip": {"tokenizer": "tokenizers/clip.json", "tokens": text.clip_tokens, "pad_id": CLIP_PAD_ID},
        },
        "sources": sources,
        "graphs": {name: _graph_entry(signature, folder) for name, signature in table.items()},
        "parity": [{**asdict(p), "snr_db": round(p.snr_db, 1)} for p in parities],
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def _graph_entry(signature: Signature, folder: Path) -> dict[str, Any]:
    path = folder / "graphs" / f"{signature.name}.onnx"
    data = path.with_name(f"{path.name}.data")
    return {
        "file": path.relative_to(folder).as_posix(),
        "data": [data.relative_to(folder).as_posix()] if data.exists() else [],
        "inputs": [asdict(port) for port in signature.inputs],
        "outputs": [asdict(port) for port in signature.outputs],
    }


def _sources(request: ExportRequest) -> dict[str, dict[str, str]]:
    if request.checkpoints is None:
        return {}
    used = sorted({part for name in request.graphs for part in request.parts(name)})
    paths = {part: find_checkpoint(request.checkpoints, part, request.preset.name) for part in used}
    return {part: {"file": path.name, "sha256": file_sha256(path)} for part, path in paths.items()}


def _kind_of_weights(request: ExportRequest, sources: dict[str, dict[str, str]]) -> str:
    """Returns "random"; "official" if `selva-fetch` got every file and left none unverified; or "trained"."""
    if request.checkpoints is None:
        return "random"
    record = read_record(request.checkpoints).values()
    fetched = {entry["sha256"] for entry in record if entry.get("verified") is not False}
    return "official" if all(source["sha256"] in fetched for source in sources.values()) else "trained"


def _notice(request: ExportRequest) -> str:
    if request.checkpoints is None:
        return RANDOM_NOTICE
    return DEMO_NOTICE if request.preset.is_demo else LICENCE_NOTICES[request.preset.system]


def _bounds(request: ExportRequest) -> dict[str, list[str]]:
    """The sounds and words that the demo knows, and some that it does not. Empty for models that know all, or none."""
    if request.checkpoints is None or not request.preset.is_demo:
        return {}
    return bounds(t5=request.preset.system == SELVA)


def _versions() -> dict[str, str]:
    names = ("selva-deploy", "torch", "onnx", "onnxscript", "onnxruntime")
    return {name: importlib.metadata.version(name) for name in names}
