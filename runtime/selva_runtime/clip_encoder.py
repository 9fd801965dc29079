"""From a video file or a caller's frames to a `Clip`: read, find cuts, encode, and keep in the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from selva_bundle.bundle import Bundle
from selva_bundle.errors import CacheError, RequestError
from selva_bundle.lengths import SequenceRules, exact_seconds
from selva_bundle.ports import VIDEO_BACKBONE
from selva_runtime.backends.executor import Executor
from selva_runtime.backends.gpu.foreign import is_foreign
from selva_runtime.cache import Cache
from selva_runtime.clip_cache import ClipCache, file_identity
from selva_runtime.encoding import Encoding, KnownCuts
from selva_runtime.progress import Progress, no_progress
from selva_runtime.results import Clip
from selva_runtime.turns import Turns

if TYPE_CHECKING:
    from selva_runtime.media.masks.mask import MaskFile

AUTO, NO_CUTS = "auto", "none"
"""What `cuts` may be, besides a list of seconds."""


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

    def from_file(
        self,
        path: Any,
        *,
        start_s: float,
        duration_s: float | None,
        cuts: str | Sequence[float],
        frame_rule: str,
        mask: MaskFile | None,
        progress: Progress | None,
        cancel: Event | None,
    ) -> Clip:
        """Do the work of `Session.encode`."""
        from selva_runtime.media.fingerprint import fingerprint
        from selva_runtime.media.video import VideoFile, read_clip

        shown = self._cut_frames(cuts, start_s)
        with path if isinstance(path, VideoFile) else VideoFile(path) as video, ExitStack() as opened:
            key: dict[str, object] = {"start_s": start_s, "duration_s": duration_s, "frame_rule": frame_rule}
            files = [video.path] if mask is None else [video.path, *mask.files()]
            unread = [file_identity(file) for file in files]
            if self.cache is not None:
                key["video"] = fingerprint(video, start_s=start_s, duration_s=duration_s, cancelled=cancel)
                key |= {} if mask is None else {"mask": mask.content(cancel)}
            cached = ClipCache(self.cache, {**key, "cuts": shown, **self._encodes_with()})
            if (found := cached.find(path)) is not None and (ready := self._ready(found, cancel)) is not None:
                return ready
            encoding = self._encoding(opened, cached, shown, progress, cancel)
            part = read_clip(
                video,
                size=self.rules.image_size,
                fps=self.rules.fps,
                start_s=start_s,
                duration_s=duration_s,
                min_duration_s=self.rules.min_duration_s,
                frame_rule=frame_rule,
                keep_frames=False,
                mask=mask,
                on_progress=encoding.decoded,
                on_rows=encoding.push,
                cancelled=cancel,
            )
            tokens, shots = encoding.finish(part.duration_s)
            clip = Clip(
                duration_s=part.duration_s,
                start_s=start_s,
                tokens=np.empty(0, np.float32),
                source=os.fspath(path),
                source_duration_s=part.source_duration_s,
                video_start_s=part.video_start_s,
                warnings=(*part.warnings, *encoding.warnings),
                backbone=self.bundle.graph_hash(VIDEO_BACKBONE),
                shots=shots,
            )
            with self.turns.take(cancel):  # the tokens may be on a device
                return cached.keep(clip, tokens, store=[file_identity(file) for file in files] == unread)

    def from_frames(
        self,
        frames: Any,
        duration_s: float,
        *,
        cuts: str | Sequence[float],
        mask: Any,
        mask_fill: str,
        mask_invert: bool,
        progress: Progress | None,
        cancel: Event | None,
    ) -> Clip:
        """Do the work of `Session.encode_frames`, in a turn that the caller has."""
        from selva_runtime.media.masks.filling import masked_frames

        size, lengths = self.rules.image_size, self.rules.lengths(duration_s)
        if is_foreign(frames):
            frames = self.executor.adopt(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (3, size, size):
            raise RequestError(f"frames are {frames.dtype} {frames.shape}; give uint8 (frames, 3, {size}, {size})")
        if len(frames) < lengths.frames:
            raise RequestError(f"{len(frames)} frames do not last {duration_s} s; give {lengths.frames}")
        frames, warnings = masked_frames(frames[: lengths.frames], mask, mask_fill, invert=mask_invert)
        not_cached = ClipCache(None, {})
        with ExitStack() as opened:
            encoding = self._encoding(opened, not_cached, self._cut_frames(cuts, 0.0), progress, cancel)
            encoding.expect(lengths.frames)
            tokens, shots = encoding.whole(frames, duration_s)
            clip = Clip(
                duration_s=duration_s,
                start_s=0.0,
                tokens=np.empty(0, np.float32),
                source=None,
                source_duration_s=None,
                video_start_s=None,
                warnings=(*warnings, *encoding.warnings),
                backbone=self.bundle.graph_hash(VIDEO_BACKBONE),
                shots=shots,
            )
            return not_cached.keep(clip, tokens, store=False)

    def _encodes_with(self) -> dict[str, object]:
        """What the tokens of a video depend on besides the video."""
        rules = self.rules
        return {
            "frames": [rules.image_size, rules.fps, rules.segment_frames, rules.segment_step],
            "window_s": self.window_s,
            "backbone": self.bundle.graph_hash(VIDEO_BACKBONE),
            "backend": self.executor.backend,
            "precision": self.precision,
        }

    def _ready(self, clip: Clip, cancel: Event | None) -> Clip | None:
        """Load the tokens of a cached clip if it is short. None if they are damaged."""
        if exact_seconds(clip.duration_s) > exact_seconds(self.window_s):
            return clip
        try:
            with self.turns.take(cancel):
                return replace(clip, tokens=self.executor.put(np.asarray(clip.tokens)))
        except CacheError:
            return None

    def _encoding(
        self,
        opened: ExitStack,
        cached: ClipCache,
        cuts: list[int] | str,
        progress: Progress | None,
        cancel: Event | None,
    ) -> Encoding:
        from selva_runtime.media.cuts import CutDetector

        known = None if cuts == NO_CUTS else CutDetector() if isinstance(cuts, str) else KnownCuts(cuts=cuts)
        return Encoding(
            self.executor,
            self.rules,
            self.window_s,
            cuts=known,
            open_writer=lambda: opened.enter_context(cached.writer()),
            turn=lambda: self.turns.take(cancel),
            progress=progress or no_progress,
            cancel=cancel,
        )

    def _cut_frames(self, cuts: str | Sequence[float], start_s: float) -> list[int] | str:
        """Check `cuts`. Return the frames of the clip that they begin, or "auto" or "none"."""
        if isinstance(cuts, str):
            if cuts not in (AUTO, NO_CUTS):
                raise RequestError(f"cuts is {cuts!r}; give {AUTO!r}, {NO_CUTS!r} or the seconds of the cuts")
            return cuts
        try:
            frames = {round((exact_seconds(cut) - exact_seconds(start_s)) * self.rules.fps) for cut in cuts}
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"cuts is {cuts!r}; give the seconds of the cuts as numbers") from error
        return sorted(frame for frame in frames if frame > 0)
