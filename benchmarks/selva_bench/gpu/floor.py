"""The least time that each stage can take on a GPU: its operations over the rate, or its bytes over the bandwidth.

Rates are those of dense bfloat16 or float16 products with float32 sums, from NVIDIA's data sheets, without sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selva_bench.statistics import AFTER_DECODE


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a GPU can do at most."""

    name: str
    flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage has to do for one stem, or what one step has to do. Only operations grow with the stems."""

    flop: float
    nbytes: float = 0.0


_TERA, _GIGA = 1e12, 1e9
CARDS = {
    name: Card(name=name, flop_per_s=rate * _TERA, bytes_per_s=bandwidth * _GIGA)
    for name, rate, bandwidth in (
        ("NVIDIA B200", 2250, 8000),
        ("NVIDIA H200 NVL", 835, 4800),
        ("NVIDIA H200", 989, 4800),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H100 NVL", 835, 3900),
        ("NVIDIA H100 80GB HBM3", 989, 3350),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100-PCIE-40GB", 312, 1555),
        ("NVIDIA L40S", 362, 864),
        ("NVIDIA L4", 121, 300),
        ("NVIDIA GeForce RTX 5090", 209.5, 1792),
        ("NVIDIA GeForce RTX 4090", 165.2, 1008),
        ("NVIDIA GeForce RTX 3090", 71, 936),
    )
}
"""By the name that CUDA gives, in full: a laptop's GPU or a slice of a GPU has a longer one and other rates."""
WORK = {
    ("small_16k", 8.0): {
        # operations were counted, bytes estimated: the weights, and what cannot stay in the caches between kernels
        "text": Work(flop=0.05e12, nbytes=1.0e9),
        "encode": Work(flop=9.0e12, nbytes=37e9),
        "select": Work(flop=0.45e12, nbytes=2.0e9),
        "step": Work(flop=0.1e12, nbytes=0.59e9),
        "vocode": Work(flop=0.97e12, nbytes=4.0e9),
    }
}
"""Preset and seconds of video → work of each stage."""
TARGET_CARD = "NVIDIA H100"
TARGET_SETTING = {"preset": "small_16k", "duration_s": 8.0, "steps": 25}
TARGETS_S = {
    "text": 0.003,
    "encode": 0.025,
    "select": 0.003,
    "step": 0.022 / 25,
    "vocode": 0.006,
    "first_stem": 0.065,
    "new_prompt": 0.035,
    "4_stems": 0.120,
}
"""What the runtime should reach on an H100 in that setting."""


def floor_s(work: Work, card: Card, stems: int = 1) -> float:
    """Seconds that `work` takes at least for so many stems."""
    return max(stems * work.flop / card.flop_per_s, work.nbytes / card.bytes_per_s)


def floors(stages: Mapping[str, Work], card: Card, steps: int, stems: int) -> dict[str, float]:
    """Least seconds of each stage, and of each total without reading the video. `stems` is the largest number."""
    found = {name: floor_s(work, card) for name, work in stages.items()}
    found[f"step_of_{stems}"] = floor_s(stages["step"], card, stems)
    for name, count in (("new_prompt", 1), ("first_stem", 1), (f"{stems}_stems", stems)):
        per_stem = {stage: floor_s(work, card, count) for stage, work in stages.items() if stage != "encode"}
        total = sum(seconds * (steps if stage == "step" else 1) for stage, seconds in per_stem.items())
        found[name] = total + (0 if name == "new_prompt" else found["encode"])
    return found


def times_floor(seconds: float, name: str, least: Mapping[str, float]) -> float | None:
    """How many times its floor a stage or total took. None if it has none."""
    own = least.get(name.removesuffix(AFTER_DECODE))
    return seconds / own if own else None


def target_s(name: str, setting: Mapping[str, Any]) -> float | None:
    """The target for a stage or total, if the setting is that of the targets."""
    return TARGETS_S.get(name) if all(setting.get(key) == value for key, value in TARGET_SETTING.items()) else None
