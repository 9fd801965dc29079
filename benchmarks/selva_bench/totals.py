"""The questions a user has, answered from what was timed: how long is the first stem, the next, another prompt?

Both kinds of side fill in the same names, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping

from selva_bench.statistics import further_stem_s

FIRST, NEW = "first_stem", "new_prompt"
AFTER_DECODE = "_after_decode"
"""Suffix: without reading the video file."""


def stems_name(stems: int) -> str:
    """Name of the total of several stems of one video."""
    return FIRST if stems == 1 else f"{stems}_stems"


def further_name(stems: int) -> str:
    """Name of the share of each stem but the first."""
    return f"further_stem_of_{stems}"


def stems_in(name: str) -> int:
    """How many stems a total makes, for its real-time factor."""
    head = name.removesuffix(AFTER_DECODE).removesuffix("_stems")
    return int(head) if head.isdecimal() else 1


def round_totals(by_stems: Mapping[int, tuple[float, float]], new_prompt_s: float) -> dict[str, list[float]]:
    """One round's totals, each a list of one sample.

    Args:
        by_stems: stems → (seconds in all, seconds of them spent reading the video); 1 is among them.
        new_prompt_s: one more stem of a clip that is at hand.
    """
    totals = {}
    for stems, (all_s, decode_s) in sorted(by_stems.items()):
        totals[stems_name(stems)] = [all_s]
        totals[stems_name(stems) + AFTER_DECODE] = [all_s - decode_s]
        if stems > 1:
            totals[further_name(stems)] = [further_stem_s(by_stems[1][0], all_s, stems)]
    return {**totals, NEW: [new_prompt_s]}
