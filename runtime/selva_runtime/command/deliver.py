"""The work of `selva-generate` as one function that a program can call too: from a video and prompts to files.

Everything that can be wrong is checked first (bundle, arguments, output folder, free space), because the computation
may take minutes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

from selva_bundle.errors import BundleError, SelvaError
from selva_runtime.command.output import output_folder
from selva_runtime.command.progress import StageClock
from selva_runtime.command.records import GenerateReport, GenerateRequest, StemFile
from selva_runtime.media.audio import check_rate, resample, stem_file_name, write_wav
from selva_runtime.media.mux import mux
from selva_runtime.media.video import VideoFile
from selva_runtime.progress import Progress
from selva_runtime.request import check_span, check_whole
from selva_runtime.results import Clip, Stem
from selva_runtime.session import Session
from selva_runtime.text import short

DEMO_BUNDLE = Path(__file__).parents[1] / "demo_bundle"
_WAV_BYTES_PER_SAMPLE = 3
_WAV_HEADER_BYTES = 4096

Say = Callable[[str, str], None]
"""Called with "notice" or "warning", and a line to show."""


def default_bundle() -> Path:
    """Return the bundle to use if none is named: SELVA_BUNDLE, or else the demo in the package.

    Raises:
        BundleError: there is neither.
    """
    if named := os.environ.get("SELVA_BUNDLE"):
        return Path(named)
    if DEMO_BUNDLE.is_dir():
        return DEMO_BUNDLE
    raise BundleError("no bundle: make one with selva-export and name it with --bundle or SELVA_BUNDLE")


def generate_files(
    request: GenerateRequest, *, say: Say | None = None, progress: Progress | None = None, cancel: Event | None = None
) -> GenerateReport:
    """Write one 24-bit WAV per prompt and take, then the copies of the video. Nothing is overwritten.

    If a copy cannot be written, the stems are kept and the report's `error` says why.

    Raises:
        BundleError: the bundle is missing, damaged or altered.
        RequestError: an argument is out of range.
        MediaNotFoundError: there is no such video.
        MediaError: the video cannot be used.
        BackendError: the backend is not installed, cannot run here or failed.
        OutputError: the output folder cannot be written to, or has too little space.
        Cancelled: `cancel` was set.
    """
    run = _Run(request, say or _say_nothing, progress, cancel)
    with run.video:
        return run.report()


class _Run:
    """One request. Its None values are replaced, and everything is checked that can be checked before the work."""

    def __init__(self, asked: GenerateRequest, say: Say, progress: Progress | None, cancel: Event | None) -> None:
        self.asked, self.cancel = asked, cancel
        self.clock = StageClock(progress)
        self.warnings: list[str] = []
        self.error: str | None = None
        self._say = say
        self.bundle = default_bundle() if asked.bundle is None else Path(asked.bundle)
        self.session = Session(
            self.bundle,
            backend=asked.backend,
            threads=asked.threads,
            precision=asked.compute_precision,
            cache=asked.cache,
        )
        self.info = self.session.info
        self.request = self.session.request(
            asked.prompts,
            negative=asked.negative,
            seed=asked.seed,
            steps=asked.steps,
            guidance=asked.guidance,
            solver=asked.solver,
            takes=asked.takes,
        )
        self.duration_s = self.info.defaults.duration_s if asked.duration_s is None else asked.duration_s
        check_span(asked.start_s, asked.duration_s, self.info.min_duration_s)
        self.rate_hz = self.info.sample_rate_hz if asked.sample_rate_hz is None else asked.sample_rate_hz
        check_rate(self.rate_hz)
        for number in asked.mux:
            check_whole(number, "mux", 1, len(self.request.prompts))
        self.video = VideoFile(asked.video)

    def report(self) -> GenerateReport:
        with output_folder(self.asked.out, self._needed_bytes()) as folder:
            self._announce()
            self.session.verify(self.clock)
            clip = self.session.encode(
                self.video,
                duration_s=self.duration_s,
                start_s=self.asked.start_s,
                progress=self.clock,
                cancel=self.cancel,
            )
            self._tell_what_was_used(clip)
            stems = self.session.generate_request(clip, self.request, progress=self.clock, cancel=self.cancel)
            for warning in dict.fromkeys(warning for stem in stems for warning in stem.warnings):
                if warning not in self.warnings:
                    self._warn(warning)
            files = self._write(folder, stems, clip)
        return self._report(clip, files)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self._say("warning", text)

    def _announce(self) -> None:
        """Tell the user before the work whose weights these are and what is ignored in the prompts.

        The most important message comes last, where it can still be seen after the work has begun.
        """
        self._say("notice", self.info.notice)
        if self.info.backend_notice:
            self._say("notice", self.info.backend_notice)
        for prompt, times in Counter(self.request.prompts).items():
            if times > 1:
                self._warn(f"the prompt {short(prompt)} is given {times} times; its stems differ only in their noise")
            for warning in self.request.warnings[prompt]:
                self._warn(warning)
        if self.info.preset == "demo":
            which = "" if self.asked.bundle or os.environ.get("SELVA_BUNDLE") else " that comes with the software"
            self._say("notice", f"this is the toy demo model{which}, not SelVA's quality; --bundle names another")
        if self.info.weights == "random":
            self._say("notice", "the weights of this bundle are random: the stems are noise, made only to try it out")

    def _tell_what_was_used(self, clip: Clip) -> None:
        for warning in clip.warnings:
            self._warn(warning)
        end_s, whole_s = clip.start_s + clip.duration_s, clip.source_duration_s
        if self.asked.duration_s is not None and clip.duration_s < self.asked.duration_s:
            self._warn(f"the video ends at {end_s:.2f} s: the stems are {clip.duration_s:.2f} s long")
        if self.asked.duration_s is None and whole_s is not None and whole_s > end_s + 0.1:
            used = f"used {clip.start_s:.1f}-{end_s:.1f} s of {whole_s:.1f} s"
            self._say("notice", f"{used} (choose with --start, --duration)")

    def _write(self, folder: Path, stems: list[Stem], clip: Clip) -> list[StemFile]:
        """Write all stems before the copies: a copy of the video may fail, and the stems took the time."""
        takes = self.request.takes
        films = [(number - 1) * takes for number in sorted(set(self.asked.mux))]
        total = len(stems) + len(films)
        files = []
        for stem in stems:
            files.append(self._write_stem(folder, stem))
            self.clock("write", len(files), total)
        for done, index in enumerate(films, len(stems) + 1):
            try:
                film = self._mux(Path(files[index].file).with_suffix(""), stems[index], clip)
                files[index] = replace(files[index], video=film)
            except SelvaError as error:
                self.error = self.error or f"the stems are written, but not the film: {' '.join(str(error).split())}"
            self.clock("write", done, total)
        return files

    def _write_stem(self, folder: Path, stem: Stem) -> StemFile:
        audio = resample(stem.audio, stem.sample_rate_hz, self.rate_hz)
        name = stem_file_name(stem.prompt) + (f"-take{stem.take + 1}" if self.request.takes > 1 else "")
        comment = (
            f"selva-deploy, {self.info.preset} ({self.info.weights} weights), seed {stem.seed}; {self.info.notice}"
        )
        path = write_wav(folder / f"{name}.wav", audio, self.rate_hz, title=stem.prompt, comment=comment)
        return StemFile(
            prompt=stem.prompt,
            take=stem.take + 1,
            seed=stem.seed,
            file=str(path),
            video=None,
            samples=len(audio),
            sample_rate_hz=self.rate_hz,
            duration_s=len(audio) / self.rate_hz,
            warnings=stem.warnings,
        )

    def _mux(self, out: Path, stem: Stem, clip: Clip) -> str:
        result = mux(
            self.asked.video,
            resample(stem.audio, stem.sample_rate_hz, self.rate_hz),
            self.rate_hz,
            out,
            start_s=clip.start_s,
            video_start_s=clip.video_start_s,
            title=stem.prompt,
        )
        for warning in result.warnings:
            self._warn(warning)
        return str(result.path)

    def _needed_bytes(self) -> int:
        stems = len(self.request.prompts) * self.request.takes
        stem_bytes = int(self.duration_s * self.rate_hz) * _WAV_BYTES_PER_SAMPLE + _WAV_HEADER_BYTES
        video_bytes = 0
        with suppress(OSError, ValueError):
            video_bytes = Path(self.asked.video).stat().st_size
        return stems * stem_bytes + len(set(self.asked.mux)) * (video_bytes + stem_bytes)

    def _report(self, clip: Clip, files: list[StemFile]) -> GenerateReport:
        return GenerateReport(
            stems=tuple(files),
            video=os.fspath(self.asked.video),
            video_duration_s=clip.source_duration_s,
            start_s=clip.start_s,
            duration_s=clip.duration_s,
            seed=self.request.seed,
            steps=self.request.steps,
            guidance=self.request.guidance,
            solver=self.request.solver,
            negative=self.request.negative,
            bundle=str(self.bundle),
            preset=self.info.preset,
            precision=self.info.precision,
            compute_precision=self.info.compute_precision,
            weights=self.info.weights,
            backend=self.info.backend,
            backend_reason=self.info.backend_reason,
            notice=self.info.notice,
            warnings=tuple(self.warnings),
            timings_s={stage: round(seconds, 3) for stage, seconds in self.clock.seconds.items()},
            error=self.error,
        )


def _say_nothing(kind: str, text: str) -> None:
    """Do nothing. Used if the caller wants no messages."""
