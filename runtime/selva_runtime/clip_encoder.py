"""From frames to a `Clip`: find cuts, encode, and keep in the cache. `encode_file` reads the frames of a video."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selva_bundle.bundle import Bundle
from selva_bundle.errors import CacheError, RequestError
from selva_bundle.lengths import SequenceRules, exact_seconds
from selva_bundle.ports import MMAUDIO, VIDEO_BACKBONE, VIDEO_CLIP, VIDEO_POOL
from selva_runtime.backends.executor import Executor
from selva_runtime.backends.gpu.foreign import is_foreign
from selva_runtime.cache import Cache
from selva_runtime.clip_cache import ClipCache
from selva_runtime.encoding import Encoding, KnownCuts, PictureEncoding
from selva_runtime.progress import Progress, no_progress
from selva_runtime.results import Clip
from selva_runtime.turns import Turns
from selva_runtime.video_part import NO_CUTS, cut_frames
from selva_runtime.windows import Shot

if TYPE_CHECKING:
    from selva_runtime.media.video import VideoClip
    from selva_runtime.media.views import View


@dataclass(frozen=True, kw_only=True)
class ClipEncoder:
    """Makes the clips of a session. The arguments and errors of its methods are those of the session's."""

    bundle: Bundle
    executor: Executor
    cache: Cache | None
    precision: str
    """In which the executor computes."""
    turns: Turns

    @property
    def rules(self) -> SequenceRules:
        """The lengths of the bundle's model."""
        return self.bundle.manifest.sequence

    @property
    def window_s(self) -> float:
        """Longest clip in a single window."""
        return self.bundle.manifest.defaults.duration_s

    @property
    def sees_pictures(self) -> bool:
        """Whether the model has an image tower."""
        return self.bundle.manifest.system == MMAUDIO

    @property
    def networks(self) -> str:
        """One SHA-256 of the networks that encode a video."""
        if not self.sees_pictures:
            return self.bundle.graph_hash(VIDEO_BACKBONE)
        hashes = (self.bundle.graph_hash(name) for name in (VIDEO_BACKBONE, VIDEO_POOL, VIDEO_CLIP))
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def from_frames(
        self,
        frames: Any,
        duration_s: float,
        *,
        pictures: npt.NDArray[np.uint8] | None,
        cuts: str | Sequence[float],
        mask: Any,
        picture_mask: Any,
        mask_fill: str,
        mask_invert: bool,
        progress: Progress | None,
        cancel: Event | None,
    ) -> Clip:
        """Do the work of `Session.encode_frames`, in a turn that the caller has."""
        from selva_runtime.media.masks.filling import masked_frames

        lengths = self.rules.lengths(duration_s)
        if is_foreign(frames):
            frames = self.executor.adopt(frames)
        _check_frames("frames", frames, lengths.frames, self.rules.image_size, duration_s)
        if self.sees_pictures:
            if pictures is None:
                size = self.rules.clip_image_size
                raise RequestError(
                    f"this model also sees pictures; give uint8 ({lengths.visual}, 3, {size}, {size}) as pictures"
                )
            _check_frames("pictures", pictures, lengths.visual, self.rules.clip_image_size, duration_s)
            if (mask is None) != (picture_mask is None):
                raise RequestError("this model sees frames and pictures; give both mask and picture_mask")
        elif pictures is not None or picture_mask is not None:
            raise RequestError("this model sees no pictures besides the frames; leave pictures out")
        frames, warnings = masked_frames(frames[: lengths.frames], mask, mask_fill, invert=mask_invert)
        with ExitStack() as opened:
            job = EncodingJob(self, ClipCache(None, {}), opened, cut_frames(self.rules, cuts, 0.0), progress, cancel)
            job.expect(lengths.frames)
            tokens, shots = job.encoding.whole(frames, duration_s)
            if pictures is not None:
                seen, more = masked_frames(pictures[: lengths.visual], picture_mask, mask_fill, invert=mask_invert)
                warnings = tuple(dict.fromkeys([*warnings, *more]))
                job.push_pictures(seen)
            return job.keep(
                tokens,
                shots,
                duration_s=duration_s,
                start_s=0.0,
                source=None,
                length_s=None,
                origin_s=None,
                store=False,
                warnings=warnings,
            )

    def without_video(self, duration_s: float) -> Clip:
        """Do the work of `Session.without_video`."""
        if not self.sees_pictures:
            raise RequestError("this model needs a video; only MMAudio makes sound from text alone")
        lengths = self.rules.lengths(duration_s)
        step, width = self.rules.segment_step, self.rules.segment_frames
        is_long = exact_seconds(duration_s) > exact_seconds(self.window_s)
        segments = -(-(lengths.frames - width) // step) + 1 if is_long else lengths.segments
        sync, features = self._row_shape(VIDEO_POOL), self._row_shape(VIDEO_CLIP)
        return Clip(
            duration_s=duration_s,
            start_s=0.0,
            tokens=np.broadcast_to(np.float32(0), (segments, *sync)),
            source=None,
            source_duration_s=None,
            video_start_s=None,
            warnings=(),
            backbone=self.networks,
            shots=(Shot(first_frame=0, first_segment=0, segments=segments),),
            pictures=np.broadcast_to(np.float32(0), (lengths.visual, *features)),
            has_video=False,
        )

    def _row_shape(self, graph: str) -> tuple[int, ...]:
        (output,) = self.bundle.manifest.graphs[graph].outputs
        return tuple(int(size) for size in output.shape[1:])

    def encodes_with(self) -> dict[str, object]:
        """What the tokens of a video depend on besides the video."""
        rules = self.rules
        return {
            "frames": [rules.image_size, rules.fps, rules.segment_frames, rules.segment_step],
            "window_s": self.window_s,
            "backbone": self.networks,
            "backend": self.executor.backend,
            "precision": self.precision,
            **({"pictures": [rules.frame_fit, rules.clip_image_size]} if self.sees_pictures else {}),
        }

    def ready(self, clip: Clip, cancel: Event | None) -> Clip | None:
        """Load the tokens of a cached clip if it is short. None if they are damaged."""
        if exact_seconds(clip.duration_s) > exact_seconds(self.window_s):
            return clip
        try:
            pictures = None if clip.pictures is None else np.asarray(clip.pictures)
            with self.turns.take(cancel):
                return replace(clip, tokens=self.executor.put(np.asarray(clip.tokens)), pictures=pictures)
        except CacheError:
            return None

    def views(self, *, masked: bool) -> list[View]:
        """What the model sees of a video: the frames of its segments, and the pictures of its image tower."""
        from selva_runtime.media.views import View

        rules = self.rules
        segments = View(size=rules.image_size, fps=rules.fps, fit=rules.frame_fit, masked=masked)
        pictures = View(size=rules.clip_image_size, fps=rules.clip_fps, masked=masked) if self.sees_pictures else None
        return [segments] if pictures is None else [segments, pictures]


class EncodingJob:
    """One encoder at work on one clip."""

    def __init__(
        self,
        encoder: ClipEncoder,
        cached: ClipCache,
        opened: ExitStack,
        cuts: list[int] | str,
        progress: Progress | None,
        cancel: Event | None,
    ) -> None:
        from selva_runtime.media.cuts import CutDetector

        self._encoder, self._cached = encoder, cached
        turn: Callable[[], AbstractContextManager[None]] = lambda: encoder.turns.take(cancel)  # noqa: E731
        self._turn = turn  # no method: a cycle would keep the memory of a device
        known = None if cuts == NO_CUTS else CutDetector() if isinstance(cuts, str) else KnownCuts(cuts=cuts)
        self.encoding = Encoding(
            encoder.executor,
            encoder.rules,
            encoder.window_s,
            cuts=known,
            open_writer=lambda: opened.enter_context(cached.writer()),
            turn=self._turn,
            progress=progress or no_progress,
            cancel=cancel,
        )
        self._pictures: PictureEncoding | None = None
        if encoder.sees_pictures:
            self._pictures = PictureEncoding(
                encoder.executor,
                encoder.rules.lengths(encoder.window_s).visual,
                open_writer=lambda: opened.enter_context(cached.picture_writer()),
                turn=self._turn,
                progress=progress or no_progress,
                cancel=cancel,
            )

    @property
    def consumers(self) -> list[Callable[[npt.NDArray[np.uint8]], None]]:
        """What takes the frames of each of the encoder's views."""
        return [self.encoding.push] if self._pictures is None else [self.encoding.push, self.push_pictures]

    def expect(self, frames: int) -> None:
        """Note how many frames will come, for the progress."""
        self.encoding.expect(frames)

    def push_pictures(self, frames: npt.NDArray[np.uint8]) -> None:
        """Take the next frames of the image tower."""
        assert self._pictures is not None
        self._pictures.push(frames)

    def finish(self, part: VideoClip, source: str, *, store: bool) -> Clip:
        """Encode the rest of what was read, and return the clip."""
        tokens, shots = self.encoding.finish(part.duration_s)
        return self.keep(
            tokens,
            shots,
            duration_s=part.duration_s,
            start_s=part.start_s,
            source=source,
            length_s=part.source_duration_s,
            origin_s=part.video_start_s,
            store=store,
            warnings=part.warnings,
        )

    def keep(
        self,
        tokens: Any,
        shots: tuple[Shot, ...],
        *,
        duration_s: float,
        start_s: float,
        source: str | None,
        length_s: float | None,
        origin_s: float | None,
        store: bool,
        warnings: tuple[str, ...] = (),
    ) -> Clip:
        """Return the clip, and keep it in the cache if it is to be stored."""
        pictures = None if self._pictures is None else self._pictures.finish()
        seen = () if self._pictures is None else self._pictures.warnings
        clip = Clip(
            duration_s=duration_s,
            start_s=start_s,
            tokens=np.empty(0, np.float32),
            source=source,
            source_duration_s=length_s,
            video_start_s=origin_s,
            warnings=(*warnings, *self.encoding.warnings, *seen),
            backbone=self._encoder.networks,
            shots=shots,
        )
        with self._turn():  # the tokens may be on a device
            if pictures is not None:
                clip = self._cached.keep_pictures(clip, pictures, store=store)
            return self._cached.keep(clip, tokens, store=store)


def _check_frames(name: str, frames: Any, count: int, size: int, duration_s: float) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (3, size, size):
        raise RequestError(f"{name} are {frames.dtype} {frames.shape}; give uint8 (frames, 3, {size}, {size})")
    if len(frames) < count:
        raise RequestError(f"{len(frames)} {name} do not last {duration_s} s; give {count}")
