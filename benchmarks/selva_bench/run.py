"""Runs a benchmark: measures all sides, and collects the results in one document of plain values.

The sides take turns, round by round, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from selva_bench import machine
from selva_bench.inputs import export_if_outdated, video_lasting
from selva_bench.options import ALL, AUTO, BenchError, BenchOptions
from selva_bench.presentation import save
from selva_bench.statistics import ratios, real_time_factor, snr_db, stems_in, summarise_rounds
from selva_bench.worker import RUNTIME, TORCH, WorkerError, WorkerProcess
from selva_bundle.bundle import Bundle
from selva_bundle.manifest import Manifest
from selva_runtime.backends.choose import BACKENDS
from selva_runtime.backends.executor import BF16, INT8
from selva_runtime.request import check_span

FORMAT_VERSION = 1
_ALL_BACKENDS = (*BACKENDS, f"openvino-{BF16}", f"openvino-{INT8}")
_CPU_BACKENDS = ("cpu", "openvino")


@dataclass(kw_only=True)
class _Side:
    """A compared program and its measurements."""

    label: str
    worker: WorkerProcess
    device: str = "cpu"
    """Hardware it runs on: "cpu" or "cuda"."""
    unavailable: str | None = None
    """Why it cannot run here; if set, there are no measurements."""
    facts: dict[str, Any] = field(default_factory=dict)
    cold: dict[str, float] = field(default_factory=dict)
    """Seconds in a fresh process: importing, opening, the first stem, and all of it with the interpreter's start."""
    floor: dict[str, Any] | None = None
    """For PyTorch on a CPU: the time that its arithmetic alone would take."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Results of the sides' `round`."""
    audio: npt.NDArray[np.float32] | None = None
    commands: dict[str, float] | None = None
    """For the runtime: seconds of two runs of selva-generate with one cache."""
    host_bytes: int | None = None
    device_bytes: int | None = None


def run_bench(options: BenchOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the benchmark, saves the results in `options.out` and returns them as one document.

    Raises:
        SelvaError: the benchmark, the export or saving the results fails.
    """
    if options.preset is not None:
        export_if_outdated(
            options.bundle_folder,
            options.preset,
            options.exported_precision,
            quality=options.quality,
            quiet=options.quiet,
        )
    manifest = Bundle.open(options.bundle_folder).manifest
    rules = manifest.sequence
    check_span(0.0, options.duration_s, rules.min_duration_s)
    document = _document(options, manifest, _measure(options, say))
    path, chart = save(document, options.out)
    say(f"wrote {path}" + (f" and {chart}" if chart else "; no chart: pip install 'selva-deploy[bench]'"))
    return document


def _measure(options: BenchOptions, say: Callable[[str], None]) -> list[_Side]:
    """Measures every side, backends first. Never leaves a process behind."""
    with tempfile.TemporaryDirectory(prefix="selva-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        options = replace(options, video=video_lasting(options.duration_s, options.video, folder))

        def start(kind: str, label: str, *, optional: bool) -> _Side:
            say(f"{label}: cold start")
            before_bytes = machine.gpu_used_bytes()
            worker = stack.enter_context(WorkerProcess(kind, label, options, folder))
            side = _Side(label=label, worker=worker)
            try:
                _warm_up(side, before_bytes)
            except WorkerError as error:
                worker.close()
                if not optional:
                    raise
                side.unavailable = str(error).removeprefix(f"{label}: ")
            return side

        every = ALL in options.backends
        sides = [start(RUNTIME, label, optional=every) for label in (_ALL_BACKENDS if every else options.backends)]
        if all(side.unavailable for side in sides):
            raise BenchError("; ".join(f"{side.label}: {side.unavailable}" for side in sides))
        for device in dict.fromkeys(side.device for side in sides if side.unavailable is None):
            sides += [start(TORCH, f"{baseline}-{device}", optional=True) for baseline in options.baselines]
        running = [side for side in sides if side.unavailable is None]
        _take_turns(running, options.rounds, say)
        for side in running:
            side.host_bytes = side.worker.ask("memory")
            if side.worker.kind == RUNTIME:
                say(f"{side.label}: two runs of selva-generate with one cache")
                side.commands = side.worker.ask("commands")
        return sides


def _warm_up(side: _Side, before_bytes: int | None) -> None:
    """Makes the first stem, then runs the side until it is warm. `before_bytes` is the GPU memory in use before."""
    cold = side.worker.ask("cold")
    until_first_stem_s = perf_counter() - side.worker.started_s
    side.worker.ask("warm_up")
    if side.worker.kind == TORCH:
        side.floor = side.worker.ask("floor")
    side.facts, side.cold = cold["facts"], {**cold["seconds"], "total_s": until_first_stem_s}
    side.audio = np.load(side.worker.audio)
    side.label = side.label.replace(AUTO, side.facts["backend"])
    side.device = "cpu" if side.facts["backend"] in _CPU_BACKENDS else "cuda"
    after_bytes = machine.gpu_used_bytes()
    if side.device != "cpu" and before_bytes is not None and after_bytes is not None:
        side.device_bytes = after_bytes - before_bytes


def _take_turns(running: Sequence[_Side], rounds: int, say: Callable[[str], None]) -> None:
    for number in range(1, rounds + 1):
        for side in running:
            record = side.worker.ask("round")
            side.rounds.append(record)
            say(f"round {number}/{rounds}: {side.label}: first stem {record['totals']['first_stem'][0]:.2f} s")


def _document(options: BenchOptions, manifest: Manifest, sides: Sequence[_Side]) -> dict[str, Any]:
    """Collects everything without any folder, host or date."""
    measured = [side for side in sides if side.rounds]
    document = {
        "benchmark": "selva-bench",
        "format_version": FORMAT_VERSION,
        "setting": {
            "preset": manifest.preset,
            "precision": manifest.precision,
            "weights": manifest.weights,
            "duration_s": options.duration_s,
            "quality": options.quality,
            "steps": options.steps,
            "guidance": manifest.defaults.guidance,
            "stems": options.stem_counts,
            "rounds": options.rounds,
            "threads": options.threads,
            "keep_text_towers": options.keep_text_towers,
        },
        "machine": machine.describe(),
        "sides": {side.label: _results(side, options.duration_s) for side in sides},
        "ratios": {side.label: _against(side, measured) for side in measured if side.worker.kind == RUNTIME},
        "rounds": {side.label: [_medians(record) for record in side.rounds] for side in measured},
    }
    rounded: dict[str, Any] = _rounded(document)
    return rounded


def _results(side: _Side, duration_s: float) -> dict[str, Any]:
    if side.unavailable is not None:
        return {"kind": side.worker.kind, "unavailable": side.unavailable}
    totals = summarise_rounds(side.rounds, "totals")
    return {
        "kind": side.worker.kind,
        "device": side.device,
        **side.facts,
        "cold": side.cold,
        **({"floor": side.floor} if side.floor else {}),
        "totals": {
            name: {**asdict(total), "real_time_factor": real_time_factor(total.median_s, duration_s * stems_in(name))}
            for name, total in totals.items()
        },
        "stages": {name: asdict(summary) for name, summary in summarise_rounds(side.rounds, "stages").items()},
        **({"commands": side.commands} if side.commands else {}),
        "peak_host_bytes": side.host_bytes,
        "device_bytes": side.device_bytes,
    }


def _against(side: _Side, measured: Sequence[_Side]) -> dict[str, Any]:
    """Ratios to each baseline on the same hardware. With equal weights, also how much the sounds differ."""
    found: dict[str, Any] = {}
    for baseline in measured:
        if baseline.worker.kind == TORCH and baseline.device == side.device:
            same_weights = side.facts["weights"] == baseline.facts["weights"]
            found[baseline.label] = {
                "totals": _ratios(side, baseline, "totals"),
                "stages": _ratios(side, baseline, "stages"),
                "snr_db": snr_db(side.audio, baseline.audio) if same_weights else None,
            }
    return found


def _ratios(side: _Side, baseline: _Side, kind: str) -> dict[str, Any]:
    return {name: asdict(ratio) for name, ratio in ratios(side.rounds, baseline.rounds, kind).items()}


def _medians(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The medians of a round, from which the ratios are computed."""
    return {kind: {name: median(samples) for name, samples in record[kind].items()} for kind in ("totals", "stages")}


def _rounded(value: Any) -> Any:
    """Rounds to six digits, which is more than any clock here resolves."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
