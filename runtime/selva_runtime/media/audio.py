"""Write stems as 24-bit WAV files that are named after the prompt."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from selva_bundle.atomic import NewFile, output_errors
from selva_bundle.errors import MediaError, RequestError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Audio = NDArray[np.float32]

MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 192_000
MAX_WAV_SAMPLES = ((1 << 32) - (1 << 16)) // 3
"""A WAV stores its size in 32 bits. The rest is for the header and the tags."""
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


class SampleFile(FileIO):
    """A file that remembers why it cannot be written. libsndfile cannot tell, and fails an assertion instead."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`, or nothing more after an error."""
        left = memoryview(data)
        size = len(left)
        while left and self.error is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.error = error
        return size


class WavWriter:
    """Writes a mono 24-bit WAV block by block, clipped to [-1, 1], in memory that does not grow.

    The samples go to a hidden file beside `path`. `close` gives it the first free name of `name.wav`, `name-2.wav` and
    so on. As a context manager it closes at the end, or removes the hidden file if there was an error.

    Raises:
        RequestError: a rate outside 8 to 192 kHz.
        OutputError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], sample_rate_hz: int, *, title: str = "", comment: str = ""
    ) -> None:
        self.path: Path | None = None
        """The path that was used, once the file is closed."""
        self._samples, rate_hz = 0, check_rate(sample_rate_hz)
        self._new = NewFile(path)
        with ExitStack() as opened, output_errors(self._new.wanted):
            opened.callback(self._new.discard)
            self._file = opened.enter_context(SampleFile(self._new.temporary, "wb"))
            self._sound = soundfile.SoundFile(self._file, "w", rate_hz, 1, "PCM_24", format="WAV")
            opened.callback(self._sound.close)
            for name, text in (("title", tag(title)), ("comment", tag(comment))):
                if text:
                    setattr(self._sound, name, text)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._opened.close()

    def write(self, block: Audio) -> None:
        """Append samples (n,).

        Raises:
            RequestError: not mono, not finite, or more than a WAV file can hold.
            OutputError: the file cannot be written.
        """
        block = np.clip(check_audio(block), -1, 1)
        self._samples = check_wav_samples(self._samples + len(block))
        with self._removing_on_error():
            self._sound.write(block)
            self._check_disk()

    def close(self, suffix: str = "") -> Path:
        """Complete the file and give it its name, with `suffix` added. Return the path that was used.

        Raises:
            OutputError: the file cannot be written.
        """
        if self.path is None:
            with self._removing_on_error():
                self._sound.close()
                self._check_disk()
                self._file.close()
                self._new.wanted = self._new.wanted.with_stem(self._new.wanted.stem + suffix)
                self.path = self._new.publish()
            self._opened.close()
        return self.path

    def _check_disk(self) -> None:
        if self._file.error is not None:
            raise self._file.error

    @contextmanager
    def _removing_on_error(self) -> Iterator[None]:
        try:
            with output_errors(self._new.wanted):
                yield
        except BaseException:
            self._opened.close()
            raise


class WavBlocks:
    """The sound of a mono WAV file in blocks of a second, to be read as often as needed.

    Raises:
        MediaError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __iter__(self) -> Iterator[Audio]:
        try:
            with soundfile.SoundFile(self.path) as file:
                yield from file.blocks(blocksize=file.samplerate, dtype="float32")
        except soundfile.SoundFileError as error:
            raise MediaError(f"{self.path}: cannot be read as sound ({error}); generate it again") from error


def check_wav_samples(samples: int) -> int:
    """Check and return the number of samples of a mono 24-bit WAV.

    Raises:
        RequestError: the file would be larger than the 4 GiB that a WAV can be.
    """
    if samples > MAX_WAV_SAMPLES:
        raise RequestError(
            f"{samples} samples: a WAV file holds at most {MAX_WAV_SAMPLES}; lower the sample rate or the duration"
        )
    return samples


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
    with WavWriter(path, sample_rate_hz, title=title, comment=comment) as file:
        file.write(audio)
        return file.close()


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
