"""Choose the format of a timeline by its suffix, and write it whole or not at all."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

from selva_bundle.atomic import write_new
from selva_bundle.errors import RequestError
from selva_runtime.media.timelines.final_cut import write_final_cut
from selva_runtime.media.timelines.mlt import write_mlt
from selva_runtime.media.timelines.otio import OTIO, OTIOZ, load_otio, write_otio, write_otioz
from selva_runtime.media.timelines.premiere import check_premiere_rate, write_premiere
from selva_runtime.media.timelines.reaper import write_rpp
from selva_runtime.media.timelines.sequence import Sequence

RPP, MLT, PREMIERE, FINAL_CUT = ".rpp", ".mlt", ".xml", ".fcpxml"
WRITERS = {
    OTIO: write_otio,
    OTIOZ: write_otioz,
    PREMIERE: write_premiere,
    FINAL_CUT: write_final_cut,
    RPP: write_rpp,
    MLT: write_mlt,
}


def check_timeline(path: str | os.PathLike[str], rate: Fraction) -> Path:
    """Check that a timeline of `rate` frames a second can be written in the format of this name. Return its path.

    Raises:
        RequestError: there is no such format, it has no such frame rate, or its library is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise RequestError(f"timeline {str(path)!r} has no known format; end its name with {', '.join(WRITERS)}")
    if suffix in (OTIO, OTIOZ):
        load_otio()
    if suffix == PREMIERE:
        check_premiere_rate(rate)
    return path


def write_timeline(sequence: Sequence, path: Path) -> Path:
    """Write the timeline. Return the path that was used: nothing is overwritten.

    Raises:
        OutputError: the file cannot be written.
    """
    writer = WRITERS[path.suffix.lower()]
    return write_new(path, lambda temporary: writer(sequence, temporary))


def moved_s(sequence: Sequence, path: Path) -> float:
    """Return by how much the stems come too late in this format, in seconds. Some have whole frames only."""
    return sequence.moved_s if path.suffix.lower() in (MLT, PREMIERE, FINAL_CUT) else 0.0
