"""Where stems go in the sequencer, and what they are called."""

from __future__ import annotations

import math
import os
import shutil
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import BinaryIO

from .spans import StripError

CHANNELS = 128
"""Channels of the sequencer, from 1."""
MIN_RATE_HZ, MAX_RATE_HZ = 2_000, 384_000
_NAME_BYTES = 58
"""Blender's names have 63 bytes, and it may add a number."""
_HEAD_BYTES = 4096


def free_channels(
    taken: Iterable[tuple[int, float, float]], begin: int, end: int, count: int, closed: Collection[int] = ()
) -> list[int]:
    """Return the lowest `count` channels that have nothing from frame `begin` to before frame `end`.

    `taken` are the channel, begin and end of all strips. Channels in `closed` are left out.

    Raises:
        StripError: there are not so many.
    """
    busy = {channel for channel, first, last in taken if first < end and begin < last}
    free = [channel for channel in range(1, CHANNELS + 1) if channel not in busy and channel not in closed]
    if len(free) < count:
        raise StripError(f"only {len(free)} channels are free there, for {count} stems")
    return free[:count]


def frames_of(seconds: float, fps: float) -> int:
    """Return how many frames a sound of this length touches."""
    return math.ceil(round(seconds * fps, 6))


def strip_name(prompt: str, take: int, takes: int) -> str:
    """Return the name of a stem's strip: the prompt, and the take from 1 if there are several."""
    suffix = f" (take {take})" if takes > 1 else ""
    text = " ".join(prompt.split()).encode()
    room = _NAME_BYTES - len(suffix)
    return text[:room].decode(errors="ignore").rstrip() + suffix


def at_speed(path: str, speed: float) -> str:
    """Make a copy of a WAV file that plays `speed` times as fast, pitch and all, as a tape would. Return its path.

    Only the sample rate in its header differs, rounded to 1 Hz: no sample changes.

    Raises:
        StripError: the file is no WAV, or the rate does not fit.
        OSError: the copy cannot be written.
    """
    root, suffix = os.path.splitext(path)
    target = _unused(f"{root} at {speed:.4g}x", suffix)
    part = target + ".part"
    try:
        shutil.copyfile(path, part)
        with open(part, "r+b") as file:
            _change_rate(file, speed)
        os.replace(part, target)
    finally:
        with suppress(FileNotFoundError):
            os.remove(part)
    return target


def _unused(root: str, suffix: str) -> str:
    numbers = ("", *(f" {number}" for number in range(2, 10_000)))
    return next(path for number in numbers if not os.path.exists(path := root + number + suffix))


def _change_rate(file: BinaryIO, speed: float) -> None:
    head = file.read(_HEAD_BYTES)
    place = head.find(b"fmt ") + 8
    if not head.startswith(b"RIFF") or place < 20 or len(head) < place + 16:
        raise StripError(f"{file.name} is not a WAV file")
    rate_hz, block_bytes = struct.unpack_from("<I4xH", head, place + 4)
    new_hz = round(rate_hz * speed)
    if not MIN_RATE_HZ <= new_hz <= MAX_RATE_HZ:
        raise StripError(f"at {speed:g} times the speed there is nothing to hear")
    file.seek(place + 4)
    file.write(struct.pack("<II", new_hz, new_hz * block_bytes))
