"""What is written after the stems: copies of the video with a stem, and timelines.

They come last: one may fail, and the stems took the time.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from selva_bundle.errors import SelvaError
from selva_runtime.command.checks import CheckedRequest
from selva_runtime.command.messages import Messages
from selva_runtime.command.records import StemFile
from selva_runtime.media.audio import WavBlocks
from selva_runtime.media.mux import mux
from selva_runtime.media.timelines.sequence import Sequence, StemTrack
from selva_runtime.media.timelines.write import moved_s, write_timeline
from selva_runtime.results import Clip


def write_film(checked: CheckedRequest, stem: StemFile, clip: Clip, messages: Messages) -> str:
    """Copy the video with the stem as its sound. Return the path.

    Raises:
        OutputError: the copy cannot be written.
        MediaError: the video cannot be copied.
    """
    assert checked.asked.video is not None
    result = mux(
        checked.asked.video,
        WavBlocks(stem.file),
        checked.rate_hz,
        Path(stem.file).with_suffix(""),
        start_s=clip.start_s,
        video_start_s=clip.video_start_s,
        title=stem.name,
    )
    for warning in result.warnings:
        messages.warn(warning)
    return str(result.path)


def write_timelines(
    checked: CheckedRequest, stems: list[StemFile], bed: StemFile | None, clip: Clip, messages: Messages
) -> tuple[list[str], str | None]:
    """Write all timelines that were asked for. Return the paths, and the first error."""
    written: list[str] = []
    first_error = None
    if not checked.timelines:
        return written, first_error
    sequence = _sequence(checked, stems, bed, clip)
    for path in checked.timelines:
        if abs(moved := moved_s(sequence, path)) * checked.rate_hz >= 1:
            messages.warn(f"{path.name}: has whole frames only, so its stems begin {1000 * moved:+.1f} ms off")
        try:
            written.append(str(write_timeline(sequence, path)))
        except SelvaError as error:
            first_error = first_error or (
                f"the stems are written, but not the timeline: {' '.join(str(error).split())}"
            )
    return written, first_error


def _sequence(checked: CheckedRequest, stems: list[StemFile], bed: StemFile | None, clip: Clip) -> Sequence:
    assert checked.video is not None
    takes = checked.request.takes
    found = [
        StemTrack(name=stems[first].name, takes=tuple(Path(stem.file) for stem in stems[first : first + takes]))
        for first in range(0, len(stems), takes)
    ]
    if bed is not None:
        found.append(StemTrack(name=bed.name, takes=(Path(bed.file),)))
    whole_s = clip.source_duration_s or clip.start_s + clip.duration_s
    return Sequence(
        name=checked.video.path.stem,
        video=checked.video.path,
        size=checked.size,
        first=checked.or_zero(checked.timecode),
        video_first=checked.or_zero(checked.own_timecode),
        frames=round(whole_s * checked.frame_rate),
        tracks=tuple(found),
        start_s=Fraction(clip.start_s),
        samples=stems[0].samples,
        rate_hz=checked.rate_hz,
        timed_stems=checked.post,
    )
