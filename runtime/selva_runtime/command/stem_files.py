"""Write stems to WAV files while they are generated. Each appears under its name when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from selva_runtime.command.records import StemFile
from selva_runtime.media.audio import Resampler, WavWriter, stem_file_name
from selva_runtime.request import StemRequest
from selva_runtime.results import SessionInfo


@dataclass(kw_only=True, eq=False)
class _Open:
    """A stem that is being written."""

    prompt: str
    take: int
    file: WavWriter
    resampler: Resampler
    samples: int = 0
    """Samples so far, at the rate of the file."""

    def write(self, audio: npt.NDArray[np.float32]) -> None:
        self.samples += len(audio)
        if len(audio):
            self.file.write(audio)


class StemFiles:
    """The files of all stems of a request. As a context manager it removes those that were not closed.

    Raises:
        OutputError: a file cannot be written.
    """

    def __init__(self, folder: Path, request: StemRequest, info: SessionInfo, rate_hz: int) -> None:
        self._request, self._rate_hz = request, rate_hz
        self._open: list[_Open] = []
        comment = f"selva-deploy, {info.preset} ({info.weights} weights), seed {request.seed}; {info.notice}"
        with ExitStack() as opened:
            for prompt in request.prompts:
                for take in range(request.takes):
                    name = stem_file_name(prompt) + (f"-take{take + 1}" if request.takes > 1 else "")
                    file = WavWriter(folder / f"{name}.wav", rate_hz, title=prompt, comment=comment)
                    opened.enter_context(file)
                    resampler = Resampler(info.sample_rate_hz, rate_hz)
                    self._open.append(_Open(prompt=prompt, take=take, file=file, resampler=resampler))
            self._files = opened.pop_all()

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

    def write(self, stem: int, audio: npt.NDArray[np.float32]) -> None:
        """Append samples (n,) at the model's rate to a stem.

        Raises:
            OutputError: the file cannot be written.
        """
        self._open[stem].write(self._open[stem].resampler.push(audio))

    def close(self, notes: Sequence[str] = (), *, suffix: str = "") -> list[StemFile]:
        """Complete the files and give them their names, with `suffix` added. `notes` are warnings about all of them.

        Raises:
            OutputError: a file cannot be written.
        """
        return [self._close(stem, notes, suffix) for stem in self._open]

    def _close(self, stem: _Open, notes: Sequence[str], suffix: str) -> StemFile:
        stem.write(stem.resampler.finish())
        return StemFile(
            prompt=stem.prompt,
            take=stem.take + 1,
            seed=self._request.seed,
            file=str(stem.file.close(suffix)),
            video=None,
            samples=stem.samples,
            sample_rate_hz=self._rate_hz,
            duration_s=stem.samples / self._rate_hz,
            warnings=(*self._request.warnings[stem.prompt], *notes),
        )
