"""`--bed`: one mixed track of MMAudio under the stems, from the same decoding of the video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

from selva_bundle.errors import RequestError
from selva_bundle.ports import DRAFT, MMAUDIO
from selva_runtime.command.records import GenerateRequest
from selva_runtime.command.stem_files import Track, tracks
from selva_runtime.progress import Progress
from selva_runtime.request import StemRequest
from selva_runtime.results import Clip, StemPart
from selva_runtime.session import Session

NAME = "bed"
MIN_GAIN_DB, MAX_GAIN_DB = -60.0, 24.0


class Bed:
    """The bed of one run. It has the seed, steps, guidance and negative prompt of the stems, and one take.

    It is no draft: under drafts it has its bundle's default steps.

    Raises:
        BundleError: the bundle is missing, damaged or altered.
        RequestError: it is no MMAudio bundle, or an argument is out of range.
        BackendError: the backend cannot run here.
    """

    def __init__(self, asked: GenerateRequest, stems: StemRequest, bundle: Path) -> None:
        if not MIN_GAIN_DB <= asked.bed_gain_db <= MAX_GAIN_DB:
            raise RequestError(f"bed-gain is {asked.bed_gain_db:g} dB; give {MIN_GAIN_DB:g} to {MAX_GAIN_DB:g} dB")
        if asked.region is not None:
            raise RequestError("--region and --bed cannot be used together; the bed of the first run stays as it is")
        self.session = Session(
            bundle,
            backend=asked.backend,
            threads=asked.threads,
            precision=asked.compute_precision,
            cache=asked.cache,
        )
        self._asked, info = asked, self.session.info
        if info.system != MMAUDIO:
            raise RequestError(f"--bed needs an MMAudio bundle, which hears all that it sees; {info.preset} is SelVA")
        self._request = self.session.request(
            [asked.bed_prompt],
            negative=asked.negative,
            seed=asked.seed,
            steps=None if DRAFT in (asked.quality, stems.quality) else asked.steps,
            guidance=asked.guidance,
            solver=asked.solver,
        )
        self.clip: Clip | None = None

    @property
    def track(self) -> Track:
        """Its file."""
        (track,) = tracks(self._request, self.session.info, unnamed=NAME, gain_db=self._asked.bed_gain_db)
        return track

    def parts(self, progress: Progress, cancel: Event | None) -> Iterator[StemPart]:
        """Generate it, as `Session.stream` does, from its `clip`."""
        assert self.clip is not None
        return self.session.stream(
            self.clip,
            self._request,
            long=self._asked.long,
            loop=self._asked.loop,
            progress=progress,
            cancel=cancel,
        )
