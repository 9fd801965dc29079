"""Write stems to WAV files while they are generated. Each appears under its name when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from selva_runtime.command.records import StemFile
from selva_runtime.media.audio import WavWriter, stem_file_name
from selva_runtime.media.post.broadcast import BroadcastWriter
from selva_runtime.media.post.chunks import Level, StemTags
from selva_runtime.media.post.loudness import SharedGain
from selva_runtime.media.post.timecode import Timecode
from selva_runtime.media.resampler import Resampler
from selva_runtime.request import StemRequest
from selva_runtime.results import SessionInfo

MIX = "mix"
"""Name of a stem without a prompt."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """A stem that is to be written."""

    name: str
    prompt: str
    take: int
    """From 0."""
    seed: int
    warnings: tuple[str, ...]
    file_name: str
    """Without suffix."""
    comment: str
    model_rate_hz: int
    gain: float = 1.0
    """Factor on the samples."""


def tracks(request: StemRequest, info: SessionInfo, *, unnamed: str = MIX, gain_db: float = 0.0) -> list[Track]:
    """Return the tracks of a request's stems. One without a prompt is called `unnamed`."""
    return [
        Track(
            name=prompt or unnamed,
            prompt=prompt,
            take=take,
            seed=request.seed,
            warnings=tuple(request.warnings[prompt]),
            file_name=stem_file_name(prompt or unnamed) + (f"-take{take + 1}" if request.takes > 1 else ""),
            comment=f"selva-deploy, {info.preset} ({info.weights} weights), seed {request.seed}; {info.notice}",
            model_rate_hz=info.sample_rate_hz,
            gain=10 ** (gain_db / 20),
        )
        for prompt in request.prompts
        for take in range(request.takes)
    ]


@dataclass(kw_only=True, eq=False)
class _Open:
    """A stem that is being written."""

    track: Track
    file: WavWriter | BroadcastWriter
    resampler: Resampler
    samples: int = 0
    """Samples so far, at the rate of the file."""

    def write(self, audio: npt.NDArray[np.float32]) -> None:
        self.samples += len(audio)
        if len(audio):
            self.file.write(audio)


@dataclass(frozen=True, kw_only=True)
class Post:
    """What Broadcast WAV files have besides the sound."""

    scene: str
    """Name of the video."""
    timecode: Timecode
    """Of the video's first frame."""
    start_s: float
    """Start of the stems after it."""


class StemFiles:
    """The files of all stems of a run. As a context manager it removes those that were not closed.

    With `post` they are Broadcast WAV files at 48 kHz with one gain.

    Raises:
        OutputError: a file cannot be written.
    """

    def __init__(self, folder: Path, tracks: Sequence[Track], rate_hz: int, post: Post | None = None) -> None:
        self._rate_hz, self._post = rate_hz, post
        self._open: list[_Open] = []
        self._gain = SharedGain(rate_hz)
        with ExitStack() as opened:
            for track in tracks:
                file = self._new_file(folder / f"{track.file_name}.wav", track)
                opened.enter_context(file)
                self._open.append(_Open(track=track, file=file, resampler=Resampler(track.model_rate_hz, rate_hz)))
            self._files = opened.pop_all()

    def _new_file(self, path: Path, track: Track) -> WavWriter | BroadcastWriter:
        if self._post is None:
            return WavWriter(path, self._rate_hz, title=track.name, comment=track.comment)
        post = self._post
        tags = StemTags(
            prompt=track.name,
            take=track.take + 1,
            scene=post.scene,
            reference=f"seed {track.seed} take {track.take + 1}",
            note=track.comment,
            frame_rate=post.timecode.rate,
            drop_frame=post.timecode.drop,
            start=post.timecode.seconds + Fraction(post.start_s),
            created=datetime.now(),
        )
        return BroadcastWriter(path, tags, self._gain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    @property
    def written_s(self) -> float:
        """Seconds that all stems have in their files."""
        return min(stem.samples for stem in self._open) / self._rate_hz

    @property
    def gain_db(self) -> float | None:
        """Gain of all stems. It is known when they are closed. None without `post`."""
        return None if self._post is None else self._gain.gain_db

    def write(self, stem: int, audio: npt.NDArray[np.float32]) -> None:
        """Append samples (n,) at the model's rate to a stem.

        Raises:
            OutputError: the file cannot be written.
        """
        gain = self._open[stem].track.gain
        heard = audio if gain == 1 else audio * np.float32(gain)
        self._open[stem].write(self._open[stem].resampler.push(heard))

    def close(self, notes: Sequence[str] = (), *, suffix: str = "") -> list[StemFile]:
        """Complete the files and give them their names, with `suffix` added. `notes` are warnings about all of them.

        Raises:
            OutputError: a file cannot be written.
        """
        for stem in self._open:
            stem.write(stem.resampler.finish())
            if isinstance(stem.file, BroadcastWriter):
                stem.file.finish()
        return [self._close(stem, notes, suffix) for stem in self._open]

    def _close(self, stem: _Open, notes: Sequence[str], suffix: str) -> StemFile:
        level = stem.file.level if isinstance(stem.file, BroadcastWriter) else Level(lufs=None, true_peak_db=None)
        track = stem.track
        return StemFile(
            prompt=track.prompt,
            name=track.name,
            take=track.take + 1,
            seed=track.seed,
            file=str(stem.file.close(suffix)),
            video=None,
            samples=stem.samples,
            sample_rate_hz=self._rate_hz,
            duration_s=stem.samples / self._rate_hz,
            loudness_lufs=level.lufs,
            true_peak_db=level.true_peak_db,
            warnings=(*track.warnings, *notes),
        )
