"""Turns measurements into the reported numbers. It uses no clock or process, so that every number has a closed form.

Totals answer a user's questions: how long do the first stem, the next one and another prompt take? Every side uses the
same names, so that they can be compared. A round is one pass of every side over the same work. Ratios are taken within
a round, because other load on the machine changes between rounds. Their median is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

STAGES = ("decode", "encode", "pictures", "text", "select", "conditions", "step", "vocode")
"""In the order they run."""
AFTER_DECODE = "_after_decode"
"""Suffix for a total without reading the video file."""
ENOUGH_FOR_P99 = 100
"""With fewer samples the 99th percentile is just the slowest one."""

Round = Mapping[str, Mapping[str, Sequence[float]]]
"""A round of one side: "totals" and "stages", each with samples in seconds by name."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Median and spread of some samples, seconds."""

    median_s: float
    low_s: float
    """First quartile."""
    high_s: float
    """Third quartile."""
    min_s: float
    max_s: float
    p99_s: float | None
    """None if there are too few samples for it."""
    samples: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times longer the baseline took; above 1, ours is faster."""

    median: float
    min: float
    max: float


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` of the samples lie, interpolated linearly between neighbours."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarise(samples: Sequence[float]) -> Summary:
    """Computes median and spread of at least one sample."""
    return Summary(
        median_s=median(samples),
        low_s=quantile(samples, 0.25),
        high_s=quantile(samples, 0.75),
        min_s=min(samples),
        max_s=max(samples),
        p99_s=quantile(samples, 0.99) if len(samples) >= ENOUGH_FOR_P99 else None,
        samples=len(samples),
    )


def summarise_rounds(rounds: Sequence[Round], kind: str) -> dict[str, Summary]:
    """Summarises `kind` ("totals" or "stages") of one side over the samples of all rounds."""
    names = dict.fromkeys(name for record in rounds for name in record[kind])
    return {name: summarise([s for record in rounds for s in record[kind].get(name, ())]) for name in names}


def ratios(ours: Sequence[Round], baseline: Sequence[Round], kind: str) -> dict[str, Ratio]:
    """Baseline over ours, from each round's medians, for names in both that took measurable time in every round."""
    found: dict[str, list[float]] = {}
    for own, other in zip(ours, baseline, strict=True):
        for name in filter(other[kind].__contains__, own[kind]):
            found.setdefault(name, []).append(_ratio(median(other[kind][name]), median(own[kind][name])))
    return {
        name: Ratio(median=median(values), min=min(values), max=max(values))
        for name, values in found.items()
        if min(values) > 0
    }


def _ratio(baseline_s: float, own_s: float) -> float:
    """The ratio, or 0 if the time is lost in noise: a difference of two times may be zero or negative."""
    return baseline_s / own_s if min(baseline_s, own_s) > 0 else 0.0


def further_stem_s(one_s: float, many_s: float, stems: int) -> float:
    """Seconds that each stem after the first adds."""
    return (many_s - one_s) / (stems - 1)


def real_time_factor(seconds: float, sound_s: float) -> float:
    """Seconds of computing per second of sound: below 1 is faster than real time."""
    return seconds / sound_s


def stems_in(name: str) -> int:
    """Number of stems in a total, for its real-time factor."""
    head = name.removesuffix(AFTER_DECODE).removesuffix("_stems")
    return int(head) if head.isdecimal() else 1


def round_totals(by_stems: Mapping[int, tuple[float, float]], new_prompt_s: float) -> dict[str, list[float]]:
    """Totals of one round, each a list with one sample.

    Args:
        by_stems: stems → (total seconds, seconds of that for reading the video); must contain 1.
        new_prompt_s: seconds for a new prompt on the same video.
    """
    totals = {}
    for stems, (all_s, decode_s) in sorted(by_stems.items()):
        name = "first_stem" if stems == 1 else f"{stems}_stems"
        totals[name] = [all_s]
        totals[name + AFTER_DECODE] = [all_s - decode_s]
        if stems > 1:
            totals[f"further_stem_of_{stems}"] = [further_stem_s(by_stems[1][0], all_s, stems)]
    return {**totals, "new_prompt": [new_prompt_s]}


def snr_db(sound: npt.NDArray[np.float32] | None, reference: npt.NDArray[np.float32] | None) -> float | None:
    """Signal-to-noise ratio of a sound against the reference; None if they are equal or cannot be compared."""
    if sound is None or reference is None or sound.shape != reference.shape:
        return None
    noise = float(np.square(sound.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None
