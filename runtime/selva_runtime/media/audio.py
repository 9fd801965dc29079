"""Resample stems and write them as 24-bit WAV files that are named after the prompt."""

from __future__ import annotations

import io
import os
import unicodedata
from contextlib import suppress
from fractions import Fraction
from math import ceil, gcd
from pathlib import Path
from typing import cast

import av
import av.filter
import numpy as np
import soundfile
from numpy.typing import NDArray

from selva_bundle.atomic import write_new
from selva_bundle.errors import RequestError

Audio = NDArray[np.float32]

MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 192_000
FILTER_TAPS = 256
FILTER_REACH = 160
"""Samples of the lower rate. swresample's filter reads fewer to either side."""
MAX_TAG_CHARACTERS = 1_000
MAX_NAME_CHARACTERS, MAX_NAME_BYTES = 80, 200
RESERVED_NAMES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"),
}


def check_rate(rate_hz: int) -> int:
    """Check and return a sample rate.

    Raises:
        RequestError: outside 8 to 192 kHz, so that no sound card or codec here takes it.
    """
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise RequestError(f"sample rate {rate_hz} Hz: must be from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, such as 48000")
    return int(rate_hz)


def check_audio(audio: Audio) -> Audio:
    """Check audio (samples,) and return it as contiguous float32.

    Raises:
        RequestError: not mono, or not finite.
    """
    audio = np.ascontiguousarray(audio, np.float32)
    if audio.ndim != 1:
        raise RequestError(f"audio of shape {audio.shape}: must be mono, of shape (samples,)")
    if not np.isfinite(audio).all():
        raise RequestError("the audio holds NaN or infinity; generate it again, with an fp32 bundle if it recurs")
    return audio


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """Resample (n,) to (round(n * to_hz / from_hz),), aligned in time: sample 0 stays at 0 s.

    Raises:
        RequestError: not mono, not finite, or a rate outside 8 to 192 kHz.
    """
    audio, from_hz, to_hz = check_audio(audio), check_rate(from_hz), check_rate(to_hz)
    if from_hz == to_hz or not len(audio):
        return audio.copy()
    # The ends are mirrored, so that the filter sees no jump to silence and enough samples. The lead-in is a whole
    # number of samples at both rates.
    common = gcd(from_hz, to_hz)
    period_in, period_out = from_hz // common, to_hz // common
    periods = ceil(FILTER_REACH * max(1, from_hz / to_hz) / period_in)
    padded = np.pad(audio, periods * period_in, mode="reflect")
    converted = convert(padded, from_hz, to_hz)
    start, length = periods * period_out, round(Fraction(len(audio) * to_hz, from_hz))
    return converted[start : start + length].copy()


def convert(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """Convert (n,) samples with swresample and flush it. The filter has eight times the default length.

    A stem of a 16 kHz model has sound up to 8 kHz. The default filter would alias the sound above 7 kHz.
    """
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=from_hz, format="fltp", layout="mono", time_base=Fraction(1, from_hz))
    sink = graph.add("abuffersink")
    graph.link_nodes(source, graph.add("aresample", f"{to_hz}:filter_size={FILTER_TAPS}:cutoff=0.98"), sink).configure()
    frame = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = from_hz, 0
    source.push(frame)
    source.push(None)
    parts = []
    with suppress(av.EOFError, av.BlockingIOError):
        while True:
            parts.append(cast(av.AudioFrame, sink.pull()).to_ndarray()[0])
    return np.concatenate(parts).astype(np.float32, copy=False)


def write_wav(
    path: str | os.PathLike[str],
    audio: Audio,
    sample_rate_hz: int,
    *,
    title: str = "",
    comment: str = "",
) -> Path:
    """Write audio (samples,) as a mono 24-bit WAV, clipped to [-1, 1]. Return the path that was used.

    The file is written whole or not at all. An existing file is never overwritten: the name becomes `name-2.wav` and
    so on.

    Raises:
        RequestError: not mono, not finite, or a rate outside 8 to 192 kHz.
        OutputError: the file cannot be written.
    """
    audio = np.clip(check_audio(audio), -1, 1)
    data = io.BytesIO()  # on a full disk libsndfile fails an assertion, Python says why
    with soundfile.SoundFile(data, "w", check_rate(sample_rate_hz), 1, "PCM_24", format="WAV") as file:
        for name, text in (("title", tag(title)), ("comment", tag(comment))):
            if text:
                setattr(file, name, text)
        file.write(audio)

    def fill(temporary: Path) -> None:
        temporary.write_bytes(data.getbuffer())

    return write_new(path, fill)


def tag(text: str) -> str:
    """Turn text into one line of printable text of bounded length, for a file's metadata."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:MAX_TAG_CHARACTERS])
    return " ".join(line.split())


def stem_file_name(prompt: str) -> str:
    """Make a file name from a prompt, without suffix and valid on every system.

    Letters and digits of all scripts stay. Spaces, dots and slashes become one dash. Everything else is removed.
    """
    letters = "".join(map(name_letter, unicodedata.normalize("NFC", prompt)))
    name = unicodedata.normalize("NFC", "-".join(part for part in letters.split("-") if part))
    name = name[:MAX_NAME_CHARACTERS].encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip("-")
    if not name or name.upper() in RESERVED_NAMES:
        return "-".join(filter(None, ("stem", name)))
    return name


def name_letter(letter: str) -> str:
    """Return what a file name has for this letter: the letter, a dash or nothing."""
    kind = unicodedata.category(letter)
    if kind[0] in "LMN" or letter == "_":
        return letter
    return "-" if letter.isspace() or kind == "Pd" or letter in "./\\" else ""
