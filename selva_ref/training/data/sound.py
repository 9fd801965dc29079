"""The sound of a clip: mono, at the model's rate, aligned with the first picture."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from selva_ref.training.errors import SkippedClip
from selva_runtime.media.audio import check_rate
from selva_runtime.media.container import AV_ERRORS, open_media, packets
from selva_runtime.media.resampler import resample

SILENCE_PEAK = 1e-3
"""A clip whose peak is below -60 dB of full scale is silent."""
SLACK_S = 0.1
"""The sound may end this much before the pictures, because codecs work in blocks."""


def read_sound(path: Path, *, rate_hz: int, start_s: float, samples: int) -> NDArray[np.float32]:
    """Reads float32 (samples,) starting at `start_s` on the file's timeline; missing parts at the ends become silence.

    Raises:
        MediaError: it is not a media file.
        RequestError: the file states an impossible sample rate.
        SkippedClip: there is no sound, or it is damaged, too short, or silent throughout.
    """
    with open_media(path) as container:
        streams = container.streams.audio
        if not streams:
            raise SkippedClip("silent", f"{path}: has no sound track")
        source_hz = check_rate(streams[0].rate or 0)
        wanted = ceil(samples / rate_hz * source_hz)
        wave, end = _placed(container, streams[0], path, start_s, wanted)
    if end < wanted - SLACK_S * source_hz:
        raise SkippedClip(
            "short", f"{path}: {end / source_hz:.2f} s of sound, but {samples / rate_hz:.2f} s are needed"
        )
    if np.abs(wave).max() < SILENCE_PEAK:
        raise SkippedClip("silent", f"{path}: its sound never exceeds {SILENCE_PEAK:g} of full scale")
    wave = resample(wave, source_hz, rate_hz)[:samples]
    return np.pad(wave, (0, samples - len(wave)))


def _placed(
    container: InputContainer, stream: AudioStream, path: Path, start_s: float, wanted: int
) -> tuple[NDArray[np.float32], int]:
    """Returns the first `wanted` samples at the stream's own rate, each frame at its time, and the end of the last."""
    wave, end = np.zeros(wanted, np.float32), 0
    for frame in _mono(container, stream, path):
        sound = frame.to_ndarray()[0]
        begin = end
        if frame.pts is not None and frame.time_base:
            begin = round((frame.pts * frame.time_base - Fraction(start_s)) * stream.rate)
        end = begin + len(sound)
        low, high = max(begin, 0), min(end, wanted)
        if low < high:
            wave[low:high] = sound[low - begin : high - begin]
        if end >= wanted:
            break
    return wave, min(end, wanted)


def _mono(container: InputContainer, stream: AudioStream, path: Path) -> Iterator[AudioFrame]:
    mixer = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
    for packet in packets(container, stream):
        try:
            if packet is None:
                raise ValueError("a part cannot be read")
            frames = [mixed for frame in stream.decode(packet) for mixed in mixer.resample(frame)]
        except AV_ERRORS as error:
            raise SkippedClip("broken", f"{path}: its sound is damaged ({error})") from error
        yield from frames
