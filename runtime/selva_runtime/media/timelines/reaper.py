"""A REAPER project: plain text, with times in seconds and the takes of a stem in one item."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from selva_runtime.media.timelines.sequence import Sequence, StemTrack

VERSION = "7.0"


def write_rpp(sequence: Sequence, path: Path) -> None:
    """Write the project to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text("\n".join(_lines(sequence)) + "\n", encoding="utf-8")


def _lines(sequence: Sequence) -> Iterator[str]:
    yield f'<REAPER_PROJECT 0.1 "{VERSION}" 0'
    yield f"  PROJOFFS {_seconds(sequence.first.seconds)} 0 0"
    yield f"  SAMPLERATE {sequence.rate_hz} 1 0"
    yield from _track("picture", Fraction(0), sequence.frames / sequence.rate, "VIDEO", (sequence.video,))
    for stem in sequence.tracks:
        yield from _stem(sequence, stem)
    yield ">"


def _stem(sequence: Sequence, stem: StemTrack) -> Iterator[str]:
    begin = Fraction(sequence.start_samples, sequence.rate_hz)
    yield from _track(stem.name, begin, Fraction(sequence.samples, sequence.rate_hz), "WAVE", stem.takes)


def _track(name: str, begin: Fraction, length: Fraction, kind: str, files: tuple[Path, ...]) -> Iterator[str]:
    yield "  <TRACK"
    yield f"    NAME {_quoted(name)}"
    yield "    <ITEM"
    yield f"      POSITION {_seconds(begin)}"
    yield f"      LENGTH {_seconds(length)}"
    yield "      LOOP 0"
    for number, file in enumerate(files):
        if number:
            yield "      TAKE"
        yield f"      NAME {_quoted(file.name)}"
        yield f"      <SOURCE {kind}"
        yield f"        FILE {_quoted(str(file.absolute()))}"
        yield "      >"
    yield "    >"
    yield "  >"


def _seconds(time: Fraction) -> str:
    return f"{float(time):.12f}"


def _quoted(text: str) -> str:
    """Put text in the first kind of quotes that is not in it. A text with all three kinds loses the last."""
    text = " ".join(text.split())
    mark = next((mark for mark in "\"'`" if mark not in text), "`")
    return f"{mark}{text.replace(mark, chr(39))}{mark}"
