"""FCPXML 1.10, which Final Cut Pro and DaVinci Resolve import. Its times are fractions of a second.

Final Cut has no tracks: a stem is a connected clip in a lane of its own, with its name in the clip and in its role.
More takes are disabled clips in further lanes, as in `premiere`, and not Final Cut's own auditions.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from selva_runtime.media.audio import tag
from selva_runtime.media.timelines.sequence import Sequence
from selva_runtime.media.timelines.xml import write_xml

VERSION = "1.10"
PROJECT_RATE = "48k"
ROLE = "effects"


def write_final_cut(sequence: Sequence, path: Path) -> None:
    """Write the timeline to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    root = ElementTree.Element("fcpxml", version=VERSION)
    resources = ElementTree.SubElement(root, "resources")
    length, rate, begin = sequence.frames / sequence.rate, sequence.rate, sequence.video_first.seconds
    width, height = sequence.size
    _element(resources, "format", id="picture", frameDuration=1 / rate, width=width, height=height)
    _asset(resources, "video", sequence.video, begin, length, hasVideo=1, videoSources=1, format="picture")
    event = _element(root, "event", name=sequence.name)
    project = _element(event, "project", name=sequence.name)
    first, drop = sequence.first, "DF" if sequence.first.drop else "NDF"
    timing = {"duration": length, "tcStart": first.seconds, "tcFormat": drop, "audioRate": PROJECT_RATE}
    spine = ElementTree.SubElement(_element(project, "sequence", format="picture", **timing), "spine")
    shown = _element(
        spine,
        "asset-clip",
        ref="video",
        name=sequence.video.name,
        offset=first.seconds,
        start=begin,
        duration=length,
        srcEnable="video",
        tcFormat="DF" if sequence.video_first.drop else "NDF",
    )
    for number, (name, file, chosen) in enumerate(sequence.lanes(), 1):
        stem_begin = Fraction(sequence.stem_samples_begin, sequence.rate_hz)
        sound = {"hasAudio": 1, "audioSources": 1, "audioChannels": 1, "audioRate": sequence.rate_hz}
        stem_length = Fraction(sequence.samples, sequence.rate_hz)
        _asset(resources, f"stem{number}", file, stem_begin, stem_length, **sound)
        _element(
            shown,
            "asset-clip",
            ref=f"stem{number}",
            name=name,
            lane=-number,
            offset=begin + sequence.start_frame / rate,
            start=stem_begin,
            duration=sequence.stem_frames / rate,
            enabled=int(chosen),
            audioRole=f"{ROLE}.{name.replace('.', ' ')}",
        )
    write_xml(root, path, "fcpxml")


def _asset(
    resources: ElementTree.Element, key: str, file: Path, start: Fraction, duration: Fraction, **more: object
) -> None:
    asset = _element(resources, "asset", id=key, name=file.name, start=start, duration=duration, **more)
    ElementTree.SubElement(asset, "media-rep", kind="original-media", src=file.absolute().as_uri())


def _element(parent: ElementTree.Element, kind: str, /, **attributes: object) -> ElementTree.Element:
    """Append an element. A fraction is a time."""
    return ElementTree.SubElement(parent, kind, {name: _text(value) for name, value in attributes.items()})


def _text(value: object) -> str:
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}s" if value.denominator > 1 else f"{value.numerator}s"
    return tag(str(value))
