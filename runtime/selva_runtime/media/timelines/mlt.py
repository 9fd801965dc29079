"""MLT XML, for melt, Kdenlive and Shotcut. Its times are frames; more takes are muted tracks."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path
from xml.etree import ElementTree

from selva_runtime.media.audio import tag
from selva_runtime.media.timelines.sequence import Sequence
from selva_runtime.media.timelines.xml import write_xml


def write_mlt(sequence: Sequence, path: Path) -> None:
    """Write the timeline to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    root = ElementTree.Element("mlt", title=tag(sequence.name), producer="sequence")
    rate = sequence.rate
    ElementTree.SubElement(
        root, "profile", frame_rate_num=str(rate.numerator), frame_rate_den=str(rate.denominator), progressive="1"
    )
    tracks = [("picture", sequence.video, 0, sequence.frames, "")]
    length = ceil(Fraction(sequence.samples, sequence.rate_hz) * rate)
    for name, file, heard in sequence.lanes():
        tracks.append((name, file, sequence.start_frame, length, "video" if heard else "both"))
    order = ElementTree.Element("tractor", id="sequence")
    for number, (name, file, begin, frames, hidden) in enumerate(tracks):
        producer = ElementTree.SubElement(root, "producer", {"id": f"media{number}", "out": str(frames - 1)})
        _property(producer, "mlt_service", "avformat-novalidate")
        _property(producer, "resource", str(file.absolute()))
        _property(producer, "length", str(frames))
        playlist = ElementTree.SubElement(root, "playlist", id=f"track{number}")
        _property(playlist, "id", tag(name))
        _property(playlist, "shotcut:name", tag(name))
        _property(playlist, "kdenlive:track_name", tag(name))
        if begin:
            ElementTree.SubElement(playlist, "blank", length=str(begin))
        ElementTree.SubElement(playlist, "entry", {"producer": f"media{number}", "in": "0", "out": str(frames - 1)})
        ElementTree.SubElement(order, "track", {"producer": f"track{number}", **({"hide": hidden} if hidden else {})})
    for number in range(1, len(tracks)):
        mix = ElementTree.SubElement(order, "transition")
        for key, value in (("mlt_service", "mix"), ("a_track", "0"), ("b_track", str(number)), ("sum", "1")):
            _property(mix, key, value)
    root.append(order)
    write_xml(root, path)


def _property(parent: ElementTree.Element, name: str, value: str) -> None:
    ElementTree.SubElement(parent, "property", name=name).text = value
