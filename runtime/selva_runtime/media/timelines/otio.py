"""OpenTimelineIO: `.otio` with links to the media, `.otioz` with the media inside. Stems are placed by samples.

The takes of a stem are alternative media of one clip. The library's own writer for `.otioz` packs the first take alone,
so the archive is written here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selva_bundle.errors import RequestError
from selva_runtime.media.timelines.sequence import Sequence, StemTrack

OTIO, OTIOZ = ".otio", ".otioz"
ARCHIVE_VERSION = "1.0.0"
Url = Callable[[Path], str]


def load_otio() -> Any:
    """Return the module opentimelineio.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import opentimelineio
    except ImportError:
        raise RequestError(
            "this timeline needs OpenTimelineIO: pip install 'selva-deploy[timeline]'; the other formats do not"
        ) from None
    return opentimelineio


def write_otio(sequence: Sequence, path: Path) -> None:
    """Write the timeline to `path`, with absolute links to the media.

    Raises:
        OSError: the file cannot be written.
    """
    text: str = timeline(sequence, lambda file: file.absolute().as_uri()).to_json_string()
    path.write_text(text, encoding="utf-8")


def write_otioz(sequence: Sequence, path: Path) -> None:
    """Write the timeline and all media to the archive `path`.

    Raises:
        OSError: a file cannot be read or written.
    """
    text = timeline(sequence, lambda file: quote(f"media/{file.name}")).to_json_string()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version.txt", ARCHIVE_VERSION)
        archive.writestr("content.otio", text, zipfile.ZIP_DEFLATED)
        for file in (sequence.video, *(file for _, file, _ in sequence.lanes())):
            archive.write(file, f"media/{file.name}")


def timeline(sequence: Sequence, url: Url) -> Any:
    """Return the sequence as an `opentimelineio.schema.Timeline`. `url` says where a file is."""
    otio = load_otio()
    rate = float(sequence.rate)
    made = otio.schema.Timeline(sequence.name, global_start_time=otio.opentime.RationalTime(sequence.first.frame, rate))
    picture = otio.schema.Track("picture", kind=otio.schema.TrackKind.Video)
    shown = _range(otio, sequence.video_first.frame, sequence.frames, rate)
    reference = otio.schema.ExternalReference(url(sequence.video), shown)
    picture.append(otio.schema.Clip(sequence.video.name, reference, shown))
    made.tracks.append(picture)
    made.tracks.extend([_stem_track(otio, sequence, stem, url) for stem in sequence.tracks])
    return made


def _stem_track(otio: Any, sequence: Sequence, stem: StemTrack, url: Url) -> Any:
    rate_hz, before = sequence.rate_hz, sequence.start_samples
    track = otio.schema.Track(stem.name, kind=otio.schema.TrackKind.Audio)
    if before:
        track.append(otio.schema.Gap(source_range=_range(otio, 0, before, rate_hz)))
    heard = _range(otio, sequence.stem_samples_begin, sequence.samples, rate_hz)
    clip = otio.schema.Clip(stem.name, source_range=heard)
    takes = {
        f"take {number}": otio.schema.ExternalReference(url(file), heard) for number, file in enumerate(stem.takes, 1)
    }
    clip.set_media_references(takes, "take 1")
    track.append(clip)
    return track


def _range(otio: Any, begin: int, length: int, rate: float) -> Any:
    time = otio.opentime.RationalTime
    return otio.opentime.TimeRange(time(begin, rate), time(length, rate))
