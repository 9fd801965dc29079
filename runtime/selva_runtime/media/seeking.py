"""Begin to read a video in its middle, and how long it says that it is."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import chain

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from selva_runtime.media.container import AV_ERRORS, Decoder

SEEK_MARGIN_S = 5
"""Seek this much before the start, because in some formats a seek ends after the key frame that was asked for."""
TRACK_LENGTH = re.compile(r"([0-9]{1,9}):([0-9]{2}):([0-9]{2}(?:[.][0-9]{1,9})?)")
"""Value of a Matroska track's DURATION tag."""


class SeekFailed(Exception):  # noqa: N818 -- a signal within this module
    """The file cannot be read from the middle. It must be decoded from the start."""


def seek_near(decoder: Decoder, target: Fraction) -> chain[tuple[Fraction, Fraction, VideoFrame]]:
    """Seek, and return the frames from a key frame before `target` (seconds) on.

    Raises:
        SeekFailed: the format cannot seek, or the first frame is after `target` or has no time.
    """
    try:
        decoder.container.seek(int((target - SEEK_MARGIN_S) / decoder.time_base), stream=decoder.stream)
    except AV_ERRORS as error:
        raise SeekFailed from error
    frames = decoder.frames()
    first = next(frames, None)
    if first is None or first[0] > target or first[2].pts is None:
        raise SeekFailed
    return chain([first], frames)


def header_length(container: InputContainer, stream: VideoStream) -> Fraction:
    """Return the seconds of video according to the header, 0 if it says nothing."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    end, begin = Fraction(container.duration or 0, av.time_base), Fraction(0)
    if "matroska" in container.format.name:
        # Its times count from 0, even if the first frame comes later. The file's length may be that of the sound.
        begin = Fraction(container.start_time or 0, av.time_base)
        own = TRACK_LENGTH.fullmatch(stream.metadata.get("DURATION", ""))
        if own:
            hours, minutes, seconds = map(Fraction, own.groups())
            track_end = (hours * 60 + minutes) * 60 + seconds
            end = track_end if begin < track_end < end else end
    return end - begin
