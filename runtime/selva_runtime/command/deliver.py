"""The work of `selva-generate` as one function that a program can call too: from a video and prompts to files.

Everything that can be wrong is checked first (bundle, arguments, output folder, free space), because the computation
may take minutes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from threading import Event

from selva_bundle.errors import BundleError, CacheError, Cancelled, RequestError, SelvaError
from selva_runtime.clip_encoder import AUTO, NO_CUTS
from selva_runtime.command.output import output_folder
from selva_runtime.command.progress import StageClock, TimeLeft
from selva_runtime.command.records import GenerateReport, GenerateRequest, StemFile
from selva_runtime.command.stem_files import Post, StemFiles
from selva_runtime.media.audio import WavBlocks, check_rate
from selva_runtime.media.cuts import read_cuts
from selva_runtime.media.frames import check_frame_rule
from selva_runtime.media.mux import mux
from selva_runtime.media.post.broadcast import POST_RATE_HZ
from selva_runtime.media.post.timecode import Timecode, frame_rate, parse_timecode, source_timecode
from selva_runtime.media.timelines.sequence import Sequence, StemTrack
from selva_runtime.media.timelines.write import check_timeline, moved_s, write_timeline
from selva_runtime.media.video import VideoFile, header_length
from selva_runtime.progress import Progress
from selva_runtime.request import MAX_DURATION_S, MAX_SEED, check_region, check_span, check_whole
from selva_runtime.results import Clip
from selva_runtime.session import ONE_PASS, WINDOWS, Session
from selva_runtime.text import check_prompt, short

DEMO_BUNDLE = Path(__file__).parents[1] / "demo_bundle"
_WAV_BYTES_PER_SAMPLE = 3
_FLOAT_BYTES_PER_SAMPLE = 4
_WAV_HEADER_BYTES = 4096
_WAV, _POST = "wav", "post"
_NOTHING_S = 0.1
"""A video that goes on for no longer than this was used whole."""

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


def read_cuts_option(cuts: str | os.PathLike[str]) -> str | list[float]:
    """Return "auto" or "none" as it is, or the seconds in the file that is named.

    Raises:
        RequestError: the file cannot be read, or is no list of times.
    """
    if str(cuts) in (AUTO, NO_CUTS):
        return str(cuts)
    return [time_ms / 1000 for time_ms in read_cuts(cuts, 1000)]


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
    run = _Run(request, session, say or _say_nothing, progress, cancel)
    with run.video:
        return run.report()


class _Run:
    """One request. Its None values are replaced, and everything is checked that can be checked before the work."""

    def __init__(
        self,
        asked: GenerateRequest,
        session: Session | None,
        say: Say,
        progress: Progress | None,
        cancel: Event | None,
    ) -> None:
        self.asked, self.cancel = asked, cancel
        self.clock = StageClock(progress)
        self._time_left = TimeLeft(lambda text: say("notice", text))
        self.warnings: list[str] = []
        self.left_out: list[str] = []
        self.error: str | None = None
        self.timelines: list[str] = []
        self._say = say
        self.bundle = default_bundle() if asked.bundle is None else Path(asked.bundle)
        self.session = session or Session(
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
        check_span(asked.start_s, asked.duration_s, self.info.min_duration_s)
        check_frame_rule(asked.frame_rule)
        if asked.long not in (WINDOWS, ONE_PASS):
            raise RequestError(f"long is {asked.long!r}; give {WINDOWS} or {ONE_PASS}")
        self.cuts = read_cuts_option(asked.cuts)
        if asked.long == ONE_PASS:
            self.cuts = NO_CUTS
        self.region = self._checked_region()
        self.rate_hz = self._checked_rate()
        for number in asked.mux:
            check_whole(number, "mux", 1, len(self.request.prompts))
        self.video = VideoFile(asked.video)
        with ExitStack() as opened:
            opened.enter_context(self.video)
            self.frame_rate = frame_rate(self.video.stream)
            self.wanted_timelines = [check_timeline(path, self.frame_rate) for path in asked.timelines]
            self.own_timecode = self.timecode = self._own_timecode()
            if asked.timecode is not None:
                self.timecode = parse_timecode(asked.timecode, self.frame_rate)
            opened.pop_all()

    def report(self) -> GenerateReport:
        self._check_one_pass()
        with output_folder(self.asked.out, self._needed_bytes()) as folder:
            self._announce()
            self.session.verify(self._progress)
            try:
                return self._make(folder, self._encode())
            except CacheError:  # the damaged entry is gone by now
                self.video.reopen()
                return self._make(folder, self._encode())

    def _encode(self) -> Clip:
        clip = self.session.encode(
            self.video,
            duration_s=self.asked.duration_s,
            start_s=self.asked.start_s,
            cuts=self.cuts,
            frame_rule=self.asked.frame_rule,
            progress=self._progress,
            cancel=self.cancel,
        )
        self._tell_what_was_used(clip)
        return clip

    def _make(self, folder: Path, clip: Clip) -> GenerateReport:
        """Generate and write the stems, then the copies of the video."""
        cancelled = False
        post = None
        if self.asked.deliver == _POST:
            post = Post(scene=self.video.path.stem, timecode=self._or_zero(self.timecode), start_s=clip.start_s)
        with StemFiles(folder, self.request, self.info, self.rate_hz, post) as files:
            try:
                notes = self._generate(clip, files)
                self.clock("write", 0, len(self.request.prompts) * self.request.takes + len(self._films()))
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
        if not cancelled:  # the caller's progress may raise `Cancelled` again
            self.clock("write", len(stems), len(stems) + len(self._films()))
            self._write_films(stems, clip)
            self._write_timelines(stems, clip)
        return self._report(clip, stems, cancelled=cancelled)

    def _generate(self, clip: Clip, files: StemFiles) -> list[str]:
        """Write all stems to their files. Return warnings about all of them."""
        if self.region is not None:
            return self._generate_region(clip, files, self.region)
        made = self.session.stream(
            clip, self.request, long=self.asked.long, loop=self.asked.loop, progress=self._progress, cancel=self.cancel
        )
        notes: list[str] = []
        for part in made:
            files.write(part.stem, part.audio)
            notes = list(part.notes)
        return self._new_warnings(notes)

    def _new_warnings(self, notes: list[str]) -> list[str]:
        for note in dict.fromkeys(notes):
            if note not in self.warnings:
                self._warn(note)
        return notes

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
        return self._new_warnings(notes)

    def _checked_rate(self) -> int:
        """Check the kind of files, and return their sample rate."""
        asked = self.asked
        if asked.deliver not in (_WAV, _POST):
            raise RequestError(f"deliver is {asked.deliver!r}; give {_WAV} or {_POST}")
        if asked.deliver == _POST:
            if asked.sample_rate_hz not in (None, POST_RATE_HZ):
                raise RequestError(f"--deliver post writes {POST_RATE_HZ} Hz; leave out --sample-rate")
            return POST_RATE_HZ
        if asked.timecode is not None and not asked.timelines:
            raise RequestError("--timecode has no place in a plain WAV; add --deliver post")
        return check_rate(self.info.sample_rate_hz if asked.sample_rate_hz is None else asked.sample_rate_hz)

    def _own_timecode(self) -> Timecode | None:
        """Return the timecode that the video's file has for its first frame."""
        found = source_timecode(self.video)
        try:
            return None if found is None else parse_timecode(found, self.frame_rate)
        except RequestError as error:
            if self.asked.deliver == _POST and self.asked.timecode is None:
                self._warn(f"{self.video.path.name}: its timecode is not used ({error}); name one with --timecode")
            return None

    def _or_zero(self, timecode: Timecode | None) -> Timecode:
        return timecode or Timecode(frame=0, rate=self.frame_rate)

    def _checked_region(self) -> tuple[float, float] | None:
        """Check the options that belong to a region."""
        asked = self.asked
        if asked.region is None:
            for name in ("region_seed", "region_prompt"):
                if getattr(asked, name) is not None:
                    raise RequestError(f"--{name.replace('_', '-')} needs --region, such as --region 12.0:15.5")
            return None
        if asked.loop:
            raise RequestError("--region and --loop cannot be used together; make the loop first without a region")
        if asked.region_seed is not None:
            check_whole(asked.region_seed, "region-seed", 0, MAX_SEED)
        if asked.region_prompt is not None:
            check_prompt(asked.region_prompt)
        check_region(*asked.region, MAX_DURATION_S if asked.duration_s is None else asked.duration_s)
        return asked.region

    def _check_one_pass(self) -> None:
        """Check now, before the video is encoded, that its length fits in one pass."""
        most_s, duration_s = self.info.max_duration_s, self._expected_s()
        if self.asked.long == ONE_PASS and duration_s > most_s + _NOTHING_S:
            raise RequestError(
                f"one pass takes up to {most_s:g} s of video, not {duration_s:.2f} s; use --duration {most_s:g}"
            )

    def _expected_s(self) -> float:
        """Length of the stems, as far as it is known before the video was read."""
        if self.asked.duration_s is not None:
            return self.asked.duration_s
        return max(0.0, float(header_length(self.video.container, self.video.stream)) - self.asked.start_s)

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.clock(stage, done, total)
        self._time_left(stage, done, total)

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
        self.left_out.clear()
        self._new_warnings(list(clip.warnings))
        end_s, whole_s = clip.start_s + clip.duration_s, clip.source_duration_s
        if self.asked.duration_s is not None and clip.duration_s < self.asked.duration_s:
            self._new_warnings([f"the video ends at {end_s:.2f} s: the stems are {clip.duration_s:.2f} s long"])
        if clip.start_s:
            self.left_out.append(f"the first {clip.start_s:.2f} s of the video (--start)")
        if self.asked.duration_s is not None and whole_s is not None and whole_s > end_s + _NOTHING_S:
            self.left_out.append(f"the video from {end_s:.2f} s to {whole_s:.2f} s (--duration)")

    def _films(self) -> list[int]:
        """Indices of the stems that are also put in a copy of the video."""
        return [(number - 1) * self.request.takes for number in sorted(set(self.asked.mux))]

    def _write_films(self, stems: list[StemFile], clip: Clip) -> None:
        """Write the copies last: one may fail, and the stems took the time."""
        films = self._films()
        for done, index in enumerate(films, len(stems) + 1):
            try:
                stems[index] = replace(stems[index], video=self._mux(stems[index], clip))
            except SelvaError as error:
                self.error = self.error or f"the stems are written, but not the film: {' '.join(str(error).split())}"
            self.clock("write", done, len(stems) + len(films))

    def _write_timelines(self, stems: list[StemFile], clip: Clip) -> None:
        if not self.wanted_timelines:
            return
        takes = self.request.takes
        whole_s = clip.source_duration_s or clip.start_s + clip.duration_s
        sequence = Sequence(
            name=self.video.path.stem,
            video=self.video.path,
            size=(self.video.stream.width, self.video.stream.height),
            first=self._or_zero(self.timecode),
            video_first=self._or_zero(self.own_timecode),
            frames=round(whole_s * self.frame_rate),
            tracks=tuple(
                StemTrack(name=prompt, takes=tuple(Path(stem.file) for stem in stems[index * takes :][:takes]))
                for index, prompt in enumerate(self.request.prompts)
            ),
            start_s=Fraction(clip.start_s),
            samples=stems[0].samples,
            rate_hz=self.rate_hz,
            timed_stems=self.asked.deliver == _POST,
        )
        for path in self.wanted_timelines:
            if abs(moved := moved_s(sequence, path)) * self.rate_hz >= 1:
                self._warn(f"{path.name}: has whole frames only, so its stems begin {1000 * moved:+.1f} ms off")
            try:
                self.timelines.append(str(write_timeline(sequence, path)))
            except SelvaError as error:
                reason = " ".join(str(error).split())
                self.error = self.error or f"the stems are written, but not the timeline: {reason}"

    def _mux(self, stem: StemFile, clip: Clip) -> str:
        result = mux(
            self.asked.video,
            WavBlocks(stem.file),
            self.rate_hz,
            Path(stem.file).with_suffix(""),
            start_s=clip.start_s,
            video_start_s=clip.video_start_s,
            title=stem.prompt,
        )
        for warning in result.warnings:
            self._warn(warning)
        return str(result.path)

    def _needed_bytes(self) -> int:
        stems = len(self.request.prompts) * self.request.takes
        stem_bytes = int(self._expected_s() * self.rate_hz) * _WAV_BYTES_PER_SAMPLE + _WAV_HEADER_BYTES
        post_bytes = _FLOAT_BYTES_PER_SAMPLE if self.asked.deliver == _POST else 0
        hidden_bytes = int(self._expected_s() * self.rate_hz) * post_bytes
        video_bytes = 0
        with suppress(OSError, ValueError):
            video_bytes = Path(self.asked.video).stat().st_size
        return stems * (stem_bytes + hidden_bytes) + len(set(self.asked.mux)) * (video_bytes + stem_bytes)

    def _report(self, clip: Clip, files: list[StemFile], *, cancelled: bool) -> GenerateReport:
        joins_s = self.session.joins_s(clip, long=self.asked.long, loop=self.asked.loop)
        shortened = [warning for warning in self.warnings if "is longer than the model reads" in warning]
        if self.asked.loop and not cancelled:
            self.left_out.append(f"{clip.duration_s - files[0].duration_s:.2f} s at the end, so that the loop joins")
        return GenerateReport(
            stems=tuple(files),
            video=os.fspath(self.asked.video),
            video_duration_s=clip.source_duration_s,
            start_s=clip.start_s,
            duration_s=clip.duration_s,
            timecode=None if self.timecode is None else str(self.timecode),
            gain_db=self.gain_db,
            frame_rule=self.asked.frame_rule,
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
            left_out=(*self.left_out, *shortened),
            windows=len(joins_s) + 1,
            joins_s=joins_s,
            cuts_s=tuple(shot.first_frame / self.info.fps for shot in clip.shots[1:]),
            loop=self.asked.loop,
            region=self.region,
            timelines=tuple(self.timelines),
            cancelled=cancelled,
            timings_s={stage: round(seconds, 3) for stage, seconds in self.clock.seconds.items()},
            error=self.error,
        )


def _say_nothing(kind: str, text: str) -> None:
    """Do nothing. Used if the caller wants no messages."""
