"""The work of `selva-generate` as one function that a program can call too: from a video and prompts to files.

Everything that can be wrong is checked first (bundle, arguments, output folder, free space), because the computation
may take minutes.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event

from selva_bundle.errors import BundleError, CacheError, Cancelled, SelvaError
from selva_bundle.lengths import exact_seconds
from selva_bundle.ports import MMAUDIO
from selva_runtime.command.bed import Bed
from selva_runtime.command.checks import NOTHING_S, CheckedRequest
from selva_runtime.command.extras import write_film, write_timelines
from selva_runtime.command.messages import Messages, Say
from selva_runtime.command.output import output_folder
from selva_runtime.command.progress import StageClock, TimeLeft
from selva_runtime.command.records import GenerateReport, GenerateRequest, StemFile
from selva_runtime.command.stem_files import Post, StemFiles, tracks
from selva_runtime.media.video import VideoFile
from selva_runtime.progress import Progress
from selva_runtime.request import check_region
from selva_runtime.results import Clip
from selva_runtime.session import Session, encode_for
from selva_runtime.text import short
from selva_runtime.video_part import VideoPart

DEMO_BUNDLE = Path(__file__).parents[1] / "demo_bundle"
DEMOS = {"demo": "demo_bundle", "demo_mmaudio": "demo_mmaudio_bundle"}
"""The toys in the package, which may be named like a folder: name → folder in the package."""


def bundle_folder(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle. A name of `DEMOS` is the toy in the package, unless there is such a folder."""
    path = Path(name)
    return path if str(name) not in DEMOS or path.exists() else DEMO_BUNDLE.with_name(DEMOS[str(name)])


def default_bundle() -> Path:
    """Return the bundle to use if none is named: SELVA_BUNDLE, or else the demo in the package.

    Raises:
        BundleError: there is neither.
    """
    if named := os.environ.get("SELVA_BUNDLE"):
        return bundle_folder(named)
    if DEMO_BUNDLE.is_dir():
        return DEMO_BUNDLE
    raise BundleError("no bundle: make one with selva-export and name it with --bundle or SELVA_BUNDLE")


def generate_files(
    request: GenerateRequest,
    *,
    session: Session | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> GenerateReport:
    """Write one 24-bit WAV per prompt and take, then the copies of the video. Nothing is overwritten.

    `session` None means that one is opened as the request says. A program with many requests gives the session that it
    opened with the same bundle and settings.
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
    run = _Run(request, session, say, progress, cancel)
    with run.video or nullcontext():
        return run.report()


class _Run:
    """One request, from its checks to its report."""

    def __init__(
        self,
        asked: GenerateRequest,
        session: Session | None,
        say: Say | None,
        progress: Progress | None,
        cancel: Event | None,
    ) -> None:
        self.asked, self.cancel = asked, cancel
        self.messages = Messages(say)
        self.clock = StageClock(progress)
        self._time_left = TimeLeft(self.messages.notice)
        self.left_out: list[str] = []
        self.error: str | None = None
        self.timelines: list[str] = []
        self.bed_file: StemFile | None = None
        self.bundle = default_bundle() if asked.bundle is None else bundle_folder(asked.bundle)
        self.session = session or Session(
            self.bundle,
            backend=asked.backend,
            threads=asked.threads,
            precision=asked.compute_precision,
            cache=asked.cache,
        )
        self.info = self.session.info
        self.checked = CheckedRequest(asked, self.session, self.messages, cancel)
        self.request, self.video = self.checked.request, self.checked.video
        self.bed = None if asked.bed is None else Bed(asked, self.request, bundle_folder(asked.bed))

    def report(self) -> GenerateReport:
        self.checked.check_one_pass()
        with output_folder(self.asked.out, self.checked.needed_bytes()) as folder:
            self._announce()
            self.session.verify(self._progress)
            if self.bed is not None:
                self.bed.session.verify(self._progress)
            if self.video is None:
                return self._make(folder, self.session.without_video(self.checked.expected_s()))
            try:
                return self._make(folder, self._encode(self.video))
            except CacheError:  # the damaged entry is gone by now
                self.video.reopen()
                return self._make(folder, self._encode(self.video))

    def _encode(self, video: VideoFile) -> Clip:
        part = VideoPart(
            duration_s=self.asked.duration_s,
            start_s=self.asked.start_s,
            cuts=self.checked.cuts,
            frame_rule=self.asked.frame_rule,
            mask=self.asked.mask,
            mask_fill=self.asked.mask_fill,
            mask_invert=self.asked.mask_invert,
        )
        if self.bed is None:
            clip = self.session.encode_part(video, part, progress=self._progress, cancel=self.cancel)
        else:
            both = [self.session, self.bed.session]
            clip, self.bed.clip = encode_for(both, video, part, progress=self._progress, cancel=self.cancel)
        self._tell_what_was_used(clip)
        return clip

    def _make(self, folder: Path, clip: Clip) -> GenerateReport:
        """Generate and write the stems, then the copies of the video."""
        cancelled = False
        post = None
        if self.checked.post:
            first = self.checked.or_zero(self.checked.timecode)
            scene = "sound" if self.video is None else self.video.path.stem
            post = Post(scene=scene, timecode=first, start_s=clip.start_s)
        asked = tracks(self.request, self.info)
        wanted = asked if self.bed is None else [*asked, self.bed.track]
        with StemFiles(folder, wanted, self.checked.rate_hz, post) as files:
            try:
                if self.bed is not None:
                    for part in self.bed.parts(self._progress, self.cancel):
                        files.write(len(asked), part.audio)
                notes = self._generate(clip, files)
                self.clock("write", 0, len(wanted) + len(self.checked.films))
                stems = files.close(notes)
            except Cancelled:
                if not self.asked.keep_partial or not files.written_s:
                    raise
                cancelled = True
                kept = f"{files.written_s:.2f} s of {clip.duration_s:.2f} s"
                self.left_out.append(f"the stems from {files.written_s:.2f} s on")
                self.error = f"cancelled: {kept} of each stem were kept"
                stems = files.close(suffix="-partial")
        self.gain_db = files.gain_db
        if self.bed is not None:
            self.bed_file = stems.pop()
        if not cancelled:  # the caller's progress may raise `Cancelled` again
            self.clock("write", len(stems), len(stems) + len(self.checked.films))
            self._write_films(stems, clip)
            self.timelines, error = write_timelines(self.checked, stems, self.bed_file, clip, self.messages)
            self.error = self.error or error
        return self._report(clip, stems, cancelled=cancelled)

    def _generate(self, clip: Clip, files: StemFiles) -> list[str]:
        """Write all stems to their files. Return warnings about all of them."""
        if self.checked.region is not None:
            return self._generate_region(clip, files, self.checked.region)
        made = self.session.stream(
            clip, self.request, long=self.asked.long, loop=self.asked.loop, progress=self._progress, cancel=self.cancel
        )
        notes: list[str] = []
        for part in made:
            files.write(part.stem, part.audio)
            notes = list(part.notes)
        return self.messages.warn_once(notes)

    def _generate_region(self, clip: Clip, files: StemFiles, region: tuple[float, float]) -> list[str]:
        check_region(*region, clip.duration_s)
        seed = self.request.seed + 1 if self.asked.region_seed is None else self.asked.region_seed
        stems = self.session.generate_request(
            clip, self.request, long=self.asked.long, progress=self._progress, cancel=self.cancel
        )
        notes: list[str] = []
        for index, stem in enumerate(stems):
            again = self.session.regenerate(
                clip,
                stem,
                *region,
                seed=seed + stem.take,
                prompt=self.asked.region_prompt,
                long=self.asked.long,
                progress=self._progress,
                cancel=self.cancel,
            )
            files.write(index, again.audio)
            notes += again.warnings
        return self.messages.warn_once(notes)

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.clock(stage, done, total)
        self._time_left(stage, done, total)

    def _announce(self) -> None:
        """Tell the user before the work whose weights these are and what is ignored in the prompts.

        The most important message comes last, where it can still be seen after the work has begun.
        """
        for notice in dict.fromkeys([self.info.notice] + ([self.bed.session.info.notice] if self.bed else [])):
            self.messages.notice(notice)
        if self.info.backend_notice:
            self.messages.notice(self.info.backend_notice)
        for prompt, times in Counter(self.request.prompts).items():
            if times > 1:
                self.messages.warn(
                    f"the prompt {short(prompt)} is given {times} times; its stems differ only in their noise"
                )
            self.messages.warn_once(list(self.request.warnings[prompt]))
        if self.info.preset.startswith("demo"):
            which = "" if self.asked.bundle or os.environ.get("SELVA_BUNDLE") else " that comes with the software"
            whose = "MMAudio" if self.info.system == MMAUDIO else "SelVA"
            self.messages.notice(f"this is the toy demo model{which}, not {whose}'s quality; --bundle names another")
        if self.info.weights == "random":
            self.messages.notice("the weights of this bundle are random: the stems are noise, made only to try it out")

    def _tell_what_was_used(self, clip: Clip) -> None:
        self.left_out.clear()
        self.messages.warn_once(list(clip.warnings))
        end_s, whole_s = clip.start_s + clip.duration_s, clip.source_duration_s
        if self.asked.duration_s is not None and exact_seconds(clip.duration_s) < exact_seconds(self.asked.duration_s):
            self.messages.warn_once([f"the video ends at {end_s:.2f} s: the stems are {clip.duration_s:.2f} s long"])
        if clip.start_s:
            self.left_out.append(f"the first {clip.start_s:.2f} s of the video (--start)")
        if self.asked.duration_s is not None and whole_s is not None and whole_s > end_s + NOTHING_S:
            self.left_out.append(f"the video from {end_s:.2f} s to {whole_s:.2f} s (--duration)")

    def _write_films(self, stems: list[StemFile], clip: Clip) -> None:
        """Write the copies last: one may fail, and the stems took the time."""
        films = self.checked.films
        for done, index in enumerate(films, len(stems) + 1):
            try:
                stems[index] = replace(stems[index], video=write_film(self.checked, stems[index], clip, self.messages))
            except SelvaError as error:
                self.error = self.error or f"the stems are written, but not the film: {' '.join(str(error).split())}"
            self.clock("write", done, len(stems) + len(films))

    def _report(self, clip: Clip, files: list[StemFile], *, cancelled: bool) -> GenerateReport:
        joins_s = self.session.joins_s(clip, long=self.asked.long, loop=self.asked.loop)
        shortened = [warning for warning in self.messages.warnings if "is longer than the model reads" in warning]
        if self.asked.loop and not cancelled:
            self.left_out.append(f"{clip.duration_s - files[0].duration_s:.2f} s at the end, so that the loop joins")
        return GenerateReport(
            stems=tuple(files),
            bed=self.bed_file,
            video=None if self.asked.video is None else os.fspath(self.asked.video),
            video_duration_s=clip.source_duration_s,
            start_s=clip.start_s,
            duration_s=clip.duration_s,
            timecode=None if self.checked.timecode is None else str(self.checked.timecode),
            gain_db=self.gain_db,
            frame_rule=self.asked.frame_rule,
            mask=None if self.asked.mask is None else os.fspath(self.asked.mask),
            mask_fill=None if self.asked.mask is None else self.asked.mask_fill,
            mask_invert=self.asked.mask_invert,
            seed=self.request.seed,
            steps=self.request.steps,
            guidance=self.request.guidance,
            solver=self.request.solver,
            quality=self.request.quality,
            negative=self.request.negative,
            bundle=str(self.bundle),
            system=self.info.system,
            preset=self.info.preset,
            precision=self.info.precision,
            compute_precision=self.info.compute_precision,
            weights=self.info.weights,
            backend=self.info.backend,
            backend_reason=self.info.backend_reason,
            notice=self.info.notice,
            warnings=tuple(self.messages.warnings),
            left_out=(*self.left_out, *shortened),
            windows=len(joins_s) + 1,
            joins_s=joins_s,
            cuts_s=tuple(shot.first_frame / self.info.fps for shot in clip.shots[1:]),
            loop=self.asked.loop,
            region=self.checked.region,
            timelines=tuple(self.timelines),
            cancelled=cancelled,
            timings_s={stage: round(seconds, 3) for stage, seconds in self.clock.seconds.items()},
            error=self.error,
        )
