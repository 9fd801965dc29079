"""Choose the format of a timeline by its suffix, and write it whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from selva_bundle.atomic import write_new
from selva_bundle.errors import RequestError
from selva_runtime.media.timelines.mlt import start_frame, write_mlt
from selva_runtime.media.timelines.otio import OTIO, OTIOZ, load_otio, write_otio, write_otioz
from selva_runtime.media.timelines.reaper import write_rpp
from selva_runtime.media.timelines.sequence import Sequence

RPP, MLT = ".rpp", ".mlt"
WRITERS = {OTIO: write_otio, OTIOZ: write_otioz, RPP: write_rpp, MLT: write_mlt}


def check_timeline(path: str | os.PathLike[str]) -> Path:
    """Check that a timeline can be written in the format of this name, and return its path.

    Raises:
        RequestError: there is no such format, its library is not installed, or there is no such folder.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise RequestError(f"timeline {str(path)!r} has no known format; end its name with {', '.join(WRITERS)}")
    if suffix in (OTIO, OTIOZ):
        load_otio()
    return path


def write_timeline(sequence: Sequence, path: Path) -> Path:
    """Write the timeline. Return the path that was used: nothing is overwritten.

    Raises:
        OutputError: the file cannot be written.
    """
    writer = WRITERS[path.suffix.lower()]
    return write_new(path, lambda temporary: writer(sequence, temporary))


def moved_s(sequence: Sequence, path: Path) -> float:
    """Return by how much the stems come too late in this format, in seconds. MLT has whole frames only."""
    if path.suffix.lower() != MLT:
        return 0.0
    return float(start_frame(sequence) / sequence.rate - sequence.start_s)
