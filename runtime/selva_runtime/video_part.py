"""Which part of a video a clip is, and how it is seen: the arguments of `Session.encode`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from selva_bundle.errors import RequestError
from selva_bundle.lengths import SequenceRules, exact_seconds
from selva_runtime.media.masks.filling import GREY

AUTO, NO_CUTS = "auto", "none"
"""What `cuts` may be, besides a list of seconds."""
FIRST = "first"


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """A part of a video. The fields are explained in `Session.encode`."""

    start_s: float = 0.0
    duration_s: float | None = None
    cuts: str | Sequence[float] = AUTO
    frame_rule: str = FIRST
    mask: str | os.PathLike[str] | None = None
    mask_fill: str = GREY
    mask_invert: bool = False


def cut_frames(rules: SequenceRules, cuts: str | Sequence[float], start_s: float) -> list[int] | str:
    """Check `cuts`. Return the frames of the clip that they begin, or "auto" or "none".

    Raises:
        RequestError: they are something else.
    """
    if isinstance(cuts, str):
        if cuts not in (AUTO, NO_CUTS):
            raise RequestError(f"cuts is {cuts!r}; give {AUTO!r}, {NO_CUTS!r} or the seconds of the cuts")
        return cuts
    try:
        frames = {round((exact_seconds(cut) - exact_seconds(start_s)) * rules.fps) for cut in cuts}
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"cuts is {cuts!r}; give the seconds of the cuts as numbers") from error
    return sorted(frame for frame in frames if frame > 0)
