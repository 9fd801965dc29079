"""Check a request of `selva-generate` before the work, which may take minutes, and replace its None values."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from threading import Event

from selva_bundle.errors import RequestError
from selva_bundle.ports import MMAUDIO
from selva_runtime.command.messages import Messages
from selva_runtime.command.records import GenerateRequest
from selva_runtime.media.audio import check_rate
from selva_runtime.media.cuts import read_cuts
from selva_runtime.media.frames import check_frame_rule
from selva_runtime.media.masks.filling import GREY
from selva_runtime.media.masks.mask import mask_of
from selva_runtime.media.post.broadcast import POST_RATE_HZ
from selva_runtime.media.post.timecode import Timecode, frame_rate, parse_timecode, source_timecode
from selva_runtime.media.seeking import header_length
from selva_runtime.media.timelines.otio import OTIOZ
from selva_runtime.media.timelines.write import check_timeline
from selva_runtime.media.video import VideoFile
from selva_runtime.request import MAX_DURATION_S, MAX_SEED, check_region, check_span, check_whole
from selva_runtime.session import ONE_PASS, WINDOWS, Session
from selva_runtime.text import check_prompt
from selva_runtime.video_part import AUTO, NO_CUTS

NOTHING_S = 0.1
"""A video that goes on for no longer than this was used whole."""
_WAV_BYTES_PER_SAMPLE = 3
_FLOAT_BYTES_PER_SAMPLE = 4
_WAV_HEADER_BYTES = 4096
_WAV, _POST = "wav", "post"


def read_cuts_option(cuts: str | os.PathLike[str]) -> str | list[float]:
    """Return "auto" or "none" as it is, or the seconds in the file that is named.

    Raises:
        RequestError: the file cannot be read, or is no list of times.
    """
    if str(cuts) in (AUTO, NO_CUTS):
        return str(cuts)
    return [time_ms / 1000 for time_ms in read_cuts(cuts, 1000)]


class CheckedRequest:
    """A request with everything checked that can be checked before the work, and its video open.

    Raises:
        RequestError: an argument is out of range.
        BundleError: a file of the bundle was altered.
        MediaNotFoundError: there is no such video.
        MediaError: the video cannot be used.
        Cancelled: `cancel` was set.
    """

    def __init__(self, asked: GenerateRequest, session: Session, messages: Messages, cancel: Event | None) -> None:
        self.asked, self._messages = asked, messages
        self.info = session.info
        if asked.video is None:
            self._check_without_video()
        self.request = session.request(
            asked.prompts,
            negative=asked.negative,
            seed=asked.seed,
            steps=asked.steps,
            guidance=asked.guidance,
            solver=asked.solver,
            takes=asked.takes,
            quality=asked.quality,
            cancel=cancel,
        )
        if asked.bed is None:
            for name, given in (("prompt", asked.bed_prompt), ("gain", asked.bed_gain_db)):
                if given:
                    raise RequestError(f"--bed-{name} needs --bed, such as --bed mmaudio_small_16k")
        check_span(asked.start_s, asked.duration_s, self.info.min_duration_s)
        check_frame_rule(asked.frame_rule)
        if asked.long not in (WINDOWS, ONE_PASS):
            raise RequestError(f"long is {asked.long!r}; give {WINDOWS} or {ONE_PASS}")
        self.cuts = read_cuts_option(asked.cuts)
        if asked.long == ONE_PASS:
            self.cuts = NO_CUTS
        self._check_mask()
        self.region = self._checked_region()
        self.rate_hz = self._checked_rate()
        for number in asked.mux:
            check_whole(number, "mux", 1, len(self.request.prompts))
        self.films = [(number - 1) * self.request.takes for number in sorted(set(asked.mux))]
        """Indices of the stems that are also put in a copy of the video."""
        self.frame_rate = Fraction(self.info.fps)
        self.timelines: list[Path] = []
        self.own_timecode: Timecode | None = None
        self.timecode: Timecode | None = None
        self.video: VideoFile | None = None
        if asked.video is not None:
            self._open(asked.video)
        elif asked.timecode is not None:
            self.timecode = parse_timecode(asked.timecode, self.frame_rate)

    def _open(self, path: str | os.PathLike[str]) -> None:
        """Open the video, and check what depends on it."""
        asked, self.video = self.asked, VideoFile(path)
        with ExitStack() as opened:
            opened.enter_context(self.video)
            self.frame_rate = frame_rate(self.video.stream)
            self.size = self.video.stream.width, self.video.stream.height
            self.timelines = [check_timeline(path, self.frame_rate) for path in asked.timelines]
            self.own_timecode = self.timecode = self._own_timecode(self.video)
            if asked.timecode is not None:
                self.timecode = parse_timecode(asked.timecode, self.frame_rate)
            opened.pop_all()

    @property
    def post(self) -> bool:
        """Whether the stems are Broadcast WAV."""
        return self.asked.deliver == _POST

    def or_zero(self, timecode: Timecode | None) -> Timecode:
        """Return the timecode, or else 00:00:00:00."""
        return timecode or Timecode(frame=0, rate=self.frame_rate)

    def check_one_pass(self) -> None:
        """Check, before the video is encoded, that its length fits in one pass.

        Raises:
            RequestError: it is longer.
        """
        most_s, duration_s = self.info.max_duration_s, self.expected_s()
        if self.asked.long == ONE_PASS and duration_s > most_s + NOTHING_S:
            raise RequestError(
                f"one pass takes up to {most_s:g} s of video, not {duration_s:.2f} s; use --duration {most_s:g}"
            )

    def needed_bytes(self) -> int:
        """Return the most that the files will need: stems, hidden files, and copies of the video and stems."""
        stems, samples = len(self.request.prompts) * self.request.takes, int(self.expected_s() * self.rate_hz)
        stems += self.asked.bed is not None
        stem_bytes = samples * _WAV_BYTES_PER_SAMPLE + _WAV_HEADER_BYTES
        hidden_bytes = samples * _FLOAT_BYTES_PER_SAMPLE if self.post else 0
        video_bytes = 0
        with suppress(OSError, ValueError):
            video_bytes = 0 if self.asked.video is None else Path(self.asked.video).stat().st_size
        archives = sum(path.suffix.lower() == OTIOZ for path in self.timelines)
        return (
            stems * (stem_bytes + hidden_bytes)
            + len(self.films) * (video_bytes + stem_bytes)
            + archives * (video_bytes + stems * stem_bytes)
        )

    def _checked_rate(self) -> int:
        """Check the kind of files, and return their sample rate."""
        asked = self.asked
        if asked.deliver not in (_WAV, _POST):
            raise RequestError(f"deliver is {asked.deliver!r}; give {_WAV} or {_POST}")
        if self.post:
            if asked.sample_rate_hz not in (None, POST_RATE_HZ):
                raise RequestError(f"--deliver post writes {POST_RATE_HZ} Hz; leave out --sample-rate")
            return POST_RATE_HZ
        if asked.timecode is not None and not asked.timelines:
            raise RequestError("--timecode has no place in a plain WAV; add --deliver post")
        return check_rate(self.info.sample_rate_hz if asked.sample_rate_hz is None else asked.sample_rate_hz)

    def _check_without_video(self) -> None:
        """Check that nothing was asked for that needs a video."""
        if self.info.system != MMAUDIO:
            raise RequestError("no video; give one, such as: selva-generate street.mp4 -p 'dog barking' -o stems")
        needs = {
            "--start": self.asked.start_s,
            "--cuts": self.asked.cuts != AUTO,
            "--mux": self.asked.mux,
            "--timeline": self.asked.timelines,
            "--bed": self.asked.bed,
            "--mask": self.asked.mask,
        }
        if missing := [option for option, given in needs.items() if given]:
            raise RequestError(f"{missing[0]} needs a video")

    def _own_timecode(self, video: VideoFile) -> Timecode | None:
        """Return the timecode that the video's file has for its first frame."""
        found = source_timecode(video)
        try:
            return None if found is None else parse_timecode(found, self.frame_rate)
        except RequestError as error:
            if self.post and self.asked.timecode is None:
                self._messages.warn(f"{video.path.name}: its timecode is not used ({error}); name one with --timecode")
            return None

    def _check_mask(self) -> None:
        """Check that the mask is there, and the options that belong to it."""
        asked = self.asked
        mask = mask_of(asked.mask, asked.mask_fill, invert=asked.mask_invert)
        if mask is not None:
            mask.files()
        elif asked.mask_fill != GREY or asked.mask_invert:
            raise RequestError("--mask-fill and --mask-invert need --mask, such as --mask dog.mov")

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

    def expected_s(self) -> float:
        """Length of the stems, as far as it is known before the video was read."""
        if self.asked.duration_s is not None:
            return self.asked.duration_s
        if self.video is None:
            return self.info.window_s
        return max(0.0, float(header_length(self.video.container, self.video.stream)) - self.asked.start_s)
