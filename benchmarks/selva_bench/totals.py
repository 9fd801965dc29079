"""Answers a user's questions from the timings: how long do the first stem, the next one and another prompt take?

Both kinds of side use the same names, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping

from selva_bench.statistics import further_stem_s

FIRST, NEW = "first_stem", "new_prompt"
AFTER_DECODE = "_after_decode"
"""Suffix for a total without reading the video file."""


def stems_name(stems: int) -> str:
    """Name of the total of several stems of one video."""
    return FIRST if stems == 1 else f"{stems}_stems"


def further_name(stems: int) -> str:
    """Name of the share of each stem after the first."""
    return f"further_stem_of_{stems}"


def stems_in(name: str) -> int:
    """Number of stems in a total, for its real-time factor."""
    head = name.removesuffix(AFTER_DECODE).removesuffix("_stems")
    return int(head) if head.isdecimal() else 1


def round_totals(by_stems: Mapping[int, tuple[float, float]], new_prompt_s: float) -> dict[str, list[float]]:
    """Totals of one round, each a list with one sample.

    Args:
        by_stems: stems → (total seconds, seconds of that for reading the video); must contain 1.
        new_prompt_s: seconds for one more stem of the same clip.
    """
    totals = {}
    for stems, (all_s, decode_s) in sorted(by_stems.items()):
        totals[stems_name(stems)] = [all_s]
        totals[stems_name(stems) + AFTER_DECODE] = [all_s - decode_s]
        if stems > 1:
            totals[further_name(stems)] = [further_stem_s(by_stems[1][0], all_s, stems)]
    return {**totals, NEW: [new_prompt_s]}
