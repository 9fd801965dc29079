"""Final Cut Pro 7 XML (`xmeml`), which Premiere Pro and DaVinci Resolve import. Its times are frames.

A track's name is both the attribute that Premiere writes and the element that OpenTimelineIO reads. More takes are
tracks of their own with disabled clips: the format has no alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from selva_bundle.errors import RequestError
from selva_runtime.media.audio import tag
from selva_runtime.media.post.chunks import BITS
from selva_runtime.media.post.timecode import Timecode
from selva_runtime.media.timelines.sequence import Sequence
from selva_runtime.media.timelines.xml import add, write_xml

VERSION = "4"
NTSC = Fraction(1000, 1001)


@dataclass(frozen=True, kw_only=True)
class _Media:
    """A file, and the frames at which it is heard or seen."""

    path: Path
    kind: str
    begin: int
    length: int
    enabled: bool = True


def check_premiere_rate(rate: Fraction) -> None:
    """Check that the format can express this frame rate.

    Raises:
        RequestError: neither a whole number of frames a second nor 1000/1001 of one.
    """
    if rate.denominator != 1 and rate != round(rate) * NTSC:
        raise RequestError(f"a timeline in .xml cannot have {float(rate):.5g} frames a second; use .otio or .fcpxml")


def write_premiere(sequence: Sequence, path: Path) -> None:
    """Write the timeline to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    root = ElementTree.Element("xmeml", version=VERSION)
    made = ElementTree.SubElement(root, "sequence", id="sequence")
    add(made, "name", sequence.name)
    add(made, "duration", max(sequence.frames, sequence.start_frame + sequence.stem_frames))
    _rate(made, sequence.rate)
    _timecode(made, sequence.first)
    media = ElementTree.SubElement(made, "media")
    video = ElementTree.SubElement(media, "video")
    _picture_format(ElementTree.SubElement(video, "format"), sequence)
    picture = _Media(path=sequence.video, kind="video", begin=0, length=sequence.frames)
    _track(video, sequence, "picture", picture, "video1")
    audio = ElementTree.SubElement(media, "audio")
    _sound_format(ElementTree.SubElement(audio, "format"), sequence)
    for number, (name, file, chosen) in enumerate(sequence.lanes(), 1):
        begin, length = sequence.start_frame, sequence.stem_frames
        stem = _Media(path=file, kind="audio", begin=begin, length=length, enabled=chosen)
        _track(audio, sequence, name, stem, f"audio{number}")
    write_xml(root, path, "xmeml")


def _track(parent: ElementTree.Element, sequence: Sequence, name: str, media: _Media, key: str) -> None:
    track = ElementTree.SubElement(parent, "track", {"MZ.TrackName": tag(name)})
    add(track, "name", name)
    clip = ElementTree.SubElement(track, "clipitem", id=f"clip-{key}")
    add(clip, "name", name if media.kind == "audio" else media.path.name)
    add(clip, "enabled", str(media.enabled).upper())
    add(clip, "duration", media.length)
    _rate(clip, sequence.rate)
    for field, frame in (
        ("start", media.begin),
        ("end", media.begin + media.length),
        ("in", 0),
        ("out", media.length),
    ):
        add(clip, field, frame)
    _file(clip, sequence, media, key)
    if media.kind == "audio":
        source = ElementTree.SubElement(clip, "sourcetrack")
        add(source, "mediatype", "audio")
        add(source, "trackindex", 1)


def _file(clip: ElementTree.Element, sequence: Sequence, media: _Media, key: str) -> None:
    file = ElementTree.SubElement(clip, "file", id=f"file-{key}")
    add(file, "name", media.path.name)
    file_url = ElementTree.SubElement(file, "pathurl")
    file_url.text = media.path.absolute().as_uri().replace("file://", "file://localhost", 1)
    _rate(file, sequence.rate)
    add(file, "duration", media.length)
    kind = ElementTree.Element(media.kind)
    if media.kind == "video":
        _timecode(file, sequence.video_first)
        _picture_format(kind, sequence)
    else:
        _sound_format(kind, sequence)
        add(kind, "channelcount", 1)
    ElementTree.SubElement(file, "media").append(kind)


def _picture_format(parent: ElementTree.Element, sequence: Sequence) -> None:
    made = ElementTree.SubElement(parent, "samplecharacteristics")
    _rate(made, sequence.rate)
    add(made, "width", sequence.size[0])
    add(made, "height", sequence.size[1])


def _sound_format(parent: ElementTree.Element, sequence: Sequence) -> None:
    made = ElementTree.SubElement(parent, "samplecharacteristics")
    add(made, "depth", BITS)
    add(made, "samplerate", sequence.rate_hz)


def _rate(parent: ElementTree.Element, rate: Fraction) -> None:
    made = ElementTree.SubElement(parent, "rate")
    add(made, "timebase", round(rate))
    add(made, "ntsc", "FALSE" if rate.denominator == 1 else "TRUE")


def _timecode(parent: ElementTree.Element, first: Timecode) -> None:
    made = ElementTree.SubElement(parent, "timecode")
    _rate(made, first.rate)
    add(made, "string", first)
    add(made, "frame", first.frame)
    add(made, "displayformat", "DF" if first.drop else "NDF")
