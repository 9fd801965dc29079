"""Write Broadcast WAV files whose level and chunks are known only after the sound.

The sound goes block by block to a hidden file of 32-bit floats, which keeps what is above full scale. When all stems of
the video are there, each is copied once more, with their shared gain, to the 24-bit file that gets the name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from selva_bundle.atomic import NewFile, output_errors, write_new
from selva_runtime.media.audio import Audio, check_audio, check_wav_samples
from selva_runtime.media.post.chunks import BITS, Level, StemTags, bext, ixml
from selva_runtime.media.post.loudness import SharedGain

POST_RATE_HZ = 48_000
BYTES_PER_SAMPLE = BITS // 8
BLOCK_SAMPLES = 1 << 18
PCM = 1


class BroadcastWriter:
    """Writes a mono 24-bit Broadcast WAV at 48 kHz. `close` gives it the first free name, as `WavWriter` does.

    All stems of `gain` must be finished before the first of them is closed. As a context manager it removes its hidden
    file at the end.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], tags: StemTags, gain: SharedGain) -> None:
        self.path: Path | None = None
        """The path that was used, once the file is closed."""
        self._tags, self._gain, self._meter = tags, gain, gain.new_meter()
        self._samples, self._finished = 0, False
        self._wanted = Path(path)
        self._new = NewFile(path)
        with ExitStack() as opened, output_errors(self._wanted):
            opened.callback(self._new.discard)
            self._file = opened.enter_context(open(self._new.temporary, "wb"))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of a buffer that cannot be written to a full disk
            self._opened.close()

    def write(self, block: Audio) -> None:
        """Append samples (n,).

        Raises:
            RequestError: not mono, not finite, or more than a WAV file can hold.
            OutputError: the file cannot be written.
        """
        block = check_audio(block)
        self._samples = check_wav_samples(self._samples + len(block))
        self._meter.push(block)
        with output_errors(self._wanted):
            self._file.write(block.astype("<f4", copy=False).tobytes())

    def finish(self) -> None:
        """Take no more samples. The level is known then.

        Raises:
            OutputError: the file cannot be written.
        """
        if not self._finished:
            self._finished = True
            with output_errors(self._wanted):
                self._file.close()
            self._meter.finish()

    @property
    def level(self) -> Level:
        """Loudness and true peak as they are in the file, with the shared gain."""
        gain_db = self._gain.gain_db
        lufs, peak_db = self._meter.lufs, self._meter.true_peak_db
        return Level(
            lufs=None if lufs is None else lufs + gain_db, true_peak_db=None if peak_db is None else peak_db + gain_db
        )

    def close(self, suffix: str = "") -> Path:
        """Write the 24-bit file and give it its name, with `suffix` added. Return the path that was used.

        Raises:
            OutputError: the file cannot be written.
        """
        if self.path is None:
            self.finish()
            self.path = write_new(self._wanted.with_stem(self._wanted.stem + suffix), self._fill)
            self._opened.close()
        return self.path

    def _fill(self, path: Path) -> None:
        with open(path, "wb") as file:
            file.write(
                _header(
                    self._samples,
                    bext(self._tags, self.level, POST_RATE_HZ),
                    ixml(self._tags, self.level, POST_RATE_HZ),
                )
            )
            for block in self._blocks():
                file.write(block)
            file.write(b"\0" * (self._samples * BYTES_PER_SAMPLE % 2))

    def _blocks(self) -> Iterator[bytes]:
        """Yield the sound with the gain, as 24-bit little-endian samples."""
        factor, full = 10 ** (self._gain.gain_db / 20), 1 << (BITS - 1)
        with open(self._new.temporary, "rb") as file:
            while block := file.read(4 * BLOCK_SAMPLES):
                scaled = np.rint(np.frombuffer(block, "<f4").astype(np.float64) * (factor * full))
                whole = np.clip(scaled, -full, full - 1).astype("<i4")
                yield whole.view(np.uint8).reshape(-1, 4)[:, :BYTES_PER_SAMPLE].tobytes()


def _header(samples: int, bext_content: bytes, ixml_content: bytes) -> bytes:
    """Return the file up to its first sample. `bext` comes first, where recorders write it."""
    data_bytes = samples * BYTES_PER_SAMPLE
    form = struct.pack("<HHIIHH", PCM, 1, POST_RATE_HZ, POST_RATE_HZ * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, BITS)
    chunks = _chunk(b"bext", bext_content) + _chunk(b"iXML", ixml_content) + _chunk(b"fmt ", form)
    riff_bytes = 4 + len(chunks) + 8 + data_bytes + data_bytes % 2
    return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + chunks + struct.pack("<4sI", b"data", data_bytes)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", name, len(content)) + content + b"\0" * (len(content) % 2)
