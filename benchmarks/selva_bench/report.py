"""One document with all results: the last line of stdout, and the file in the results folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from selva_bench import machine
from selva_bench.job import RUNTIME
from selva_bench.measure import Plan, Side, snr_db
from selva_bench.statistics import ratios, real_time_factor, summarise_rounds
from selva_bench.totals import stems_in

FORMAT_VERSION = 1


def report(plan: Plan, sides: Sequence[Side]) -> dict[str, Any]:
    """Collects everything as plain values, without any folder, host or date."""
    job = plan.pattern
    ours = next(side for side in sides if side.rounds)
    document = {
        "benchmark": "selva-bench",
        "format_version": FORMAT_VERSION,
        "setting": {
            "preset": job.preset,
            "precision": ours.facts["precision"],
            "weights": ours.facts["weights"],
            "duration_s": job.duration_s,
            "steps": job.steps,
            "guidance": job.guidance,
            "stems": list(job.stems),
            "rounds": plan.rounds,
            "threads": job.threads,
            "keep_text_towers": job.keep_text_towers,
        },
        "machine": machine.describe(),
        "sides": {side.job.label: _side(side) for side in sides},
        "ratios": {side.job.label: _against(side, sides) for side in sides if side.job.kind == RUNTIME and side.rounds},
        "rounds": {side.job.label: [_medians(record) for record in side.rounds] for side in sides if side.rounds},
    }
    rounded: dict[str, Any] = _rounded(document)
    return rounded


def _side(side: Side) -> dict[str, Any]:
    if side.unavailable is not None:
        return {"kind": side.job.kind, "unavailable": side.unavailable}
    totals = summarise_rounds(side.rounds, "totals")
    sound_s = side.job.duration_s
    return {
        "kind": side.job.kind,
        "device": side.device,
        **side.facts,
        "cold": side.cold,
        **({"floor": side.floor} if side.floor else {}),
        "totals": {
            name: {**asdict(summary), "real_time_factor": real_time_factor(summary.median_s, sound_s * stems_in(name))}
            for name, summary in totals.items()
        },
        "stages": {name: asdict(summary) for name, summary in summarise_rounds(side.rounds, "stages").items()},
        "peak_host_bytes": side.host_bytes,
        "device_bytes": side.device_bytes,
    }


def _against(side: Side, sides: Sequence[Side]) -> dict[str, Any]:
    """Ratios to each baseline on the same hardware. With equal weights, also how much the sounds differ."""
    found = {}
    for baseline in sides:
        if baseline.job.kind == RUNTIME or not baseline.rounds or baseline.device != side.device:
            continue
        same_weights = side.facts["weights"] == baseline.facts["weights"]
        found[baseline.job.label] = {
            "totals": _ratios(side, baseline, "totals"),
            "stages": _ratios(side, baseline, "stages"),
            "snr_db": snr_db(side.audio, baseline.audio) if same_weights else None,
        }
    return found


def _ratios(side: Side, baseline: Side, kind: str) -> dict[str, Any]:
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
