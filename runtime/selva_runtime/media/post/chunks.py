"""The chunks of a Broadcast WAV that say what the sound is and where it belongs: `bext` and `iXML`.

`bext` is EBU Tech 3285, version 2. `iXML` is what location recorders write and editors read: www.ixml.info.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from xml.etree import ElementTree

from selva_runtime.media.audio import tag

BEXT = struct.Struct("<256s32s32s10s8sQH64s5h180s")
BEXT_VERSION = 2
IXML_VERSION = "3.01"
NO_LOUDNESS = 0x7FFF
ORIGINATOR = "selva-deploy"
BITS = 24


@dataclass(frozen=True, kw_only=True)
class StemTags:
    """What is written into a stem's file."""

    prompt: str
    take: int
    """From 1."""
    scene: str
    """Name of the video."""
    reference: str
    """What tells this sound from others of the same prompt, such as its seed."""
    note: str
    frame_rate: Fraction
    drop_frame: bool
    start: Fraction
    """Seconds since midnight, in the video's timecode."""
    created: datetime


@dataclass(frozen=True, kw_only=True)
class Level:
    """Loudness of a stem as it is in its file. None means silence."""

    lufs: float | None
    true_peak_db: float | None


def time_reference(tags: StemTags, rate_hz: int) -> int:
    """Return the place of the first sample, in samples since midnight."""
    return round(tags.start * rate_hz)


def bext(tags: StemTags, level: Level, rate_hz: int) -> bytes:
    """Return the content of the `bext` chunk."""
    lufs, peak = (_hundredths(value) for value in (level.lufs, level.true_peak_db))
    fixed = BEXT.pack(
        _ascii(tags.prompt, 256),
        _ascii(ORIGINATOR, 32),
        _ascii(tags.reference, 32),
        tags.created.strftime("%Y-%m-%d").encode(),
        tags.created.strftime("%H:%M:%S").encode(),
        time_reference(tags, rate_hz),
        BEXT_VERSION,
        b"",
        lufs,
        NO_LOUDNESS,
        peak,
        NO_LOUDNESS,
        NO_LOUDNESS,
        b"",
    )
    return fixed + f"A=PCM,F={rate_hz},W={BITS},M=mono,T={ORIGINATOR}\r\n".encode()


def _hundredths(value: float | None) -> int:
    return NO_LOUDNESS if value is None else max(round(100 * value), -0x8000)


def _ascii(text: str, size: int) -> bytes:
    """EBU Tech 3285 allows ASCII only. The iXML chunk has the text as it is."""
    return tag(text).encode("ascii", "replace")[:size]


def ixml(tags: StemTags, level: Level, rate_hz: int) -> bytes:
    """Return the content of the `iXML` chunk."""
    root = ElementTree.Element("BWFXML")
    rate = f"{tags.frame_rate.numerator}/{tags.frame_rate.denominator}"
    high, low = divmod(time_reference(tags, rate_hz), 1 << 32)
    _fill(root, IXML_VERSION=IXML_VERSION, SCENE=tags.scene, TAKE=tags.take, NOTE=tags.note)
    _fill(
        ElementTree.SubElement(root, "SPEED"),
        MASTER_SPEED=rate,
        CURRENT_SPEED=rate,
        TIMECODE_RATE=rate,
        TIMECODE_FLAG="DF" if tags.drop_frame else "NDF",
        FILE_SAMPLE_RATE=rate_hz,
        AUDIO_BIT_DEPTH=BITS,
        DIGITIZER_SAMPLE_RATE=rate_hz,
        TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI=high,
        TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO=low,
        TIMESTAMP_SAMPLE_RATE=rate_hz,
    )
    if level.lufs is not None and level.true_peak_db is not None:
        _fill(
            ElementTree.SubElement(root, "LOUDNESS"),
            LOUDNESS_VALUE=f"{level.lufs:.2f}",
            MAX_TRUE_PEAK_LEVEL=f"{level.true_peak_db:.2f}",
        )
    tracks = ElementTree.SubElement(root, "TRACK_LIST")
    _fill(tracks, TRACK_COUNT=1)
    _fill(ElementTree.SubElement(tracks, "TRACK"), CHANNEL_INDEX=1, INTERLEAVE_INDEX=1, NAME=tags.prompt)
    return b'<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root, encoding="unicode").encode()


def _fill(parent: ElementTree.Element, **values: object) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = tag(str(value))
