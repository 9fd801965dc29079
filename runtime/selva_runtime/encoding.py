"""Encode frames while they are decoded: the video backbone on overlapping segments, a few at a time.

Frames of up to one window are encoded together, as one clip. If more come, they are encoded shot by shot, and their
tokens leave memory, so a video may be of any length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event
from typing import Protocol

import numpy as np
import numpy.typing as npt

from selva_bundle.lengths import SequenceRules, exact_seconds
from selva_bundle.ports import VIDEO_BACKBONE, VIDEO_CLIP, VIDEO_POOL
from selva_runtime.backends.executor import Executor, Tensor, concatenate, stack
from selva_runtime.batches import in_batches
from selva_runtime.cache.rows import RowWriter
from selva_runtime.flow import finite
from selva_runtime.progress import Progress
from selva_runtime.windows import Shot

Frames = npt.NDArray[np.uint8]
MIN_SHOT_FRAMES = 8
"""A cut that comes sooner after another one, or before the end, is ignored."""
_ROWS = 64


class Cuts(Protocol):
    """Finds the cuts of a video from its frames."""

    @property
    def cuts(self) -> list[int]:
        """Numbers of the frames that begin a shot, ascending."""

    @property
    def settled(self) -> int:
        """There will be no further cut before this frame."""

    def push(self, frames: Frames) -> None:
        """Look at the next frames."""


@dataclass(frozen=True, kw_only=True)
class KnownCuts:
    """The cuts that a user gives."""

    cuts: list[int]
    settled: int = sys.maxsize

    def push(self, frames: Frames) -> None:
        """Do nothing: the frames do not matter."""


class Backbone:
    """Runs the backbone on segments and counts them."""

    def __init__(self, executor: Executor, rules: SequenceRules, progress: Progress, cancel: Event | None) -> None:
        self._executor, self._rules, self._progress, self._cancel = executor, rules, progress, cancel
        self._pools = rules.clip_image_size > 0
        self.warnings: list[str] = []
        self.expected = 0
        """Segments of the whole clip, for the progress."""
        self._done = 0

    def tokens(self, frames: Tensor, segments: int) -> Tensor:
        """(segments, tokens, width) of the first segments of `frames` (T, 3, H, H). In MMAudio the sync features.

        Raises:
            BackendError: the backend failed.
            Cancelled: the caller's event was set.
        """
        executor = self._executor
        step, width = self._rules.segment_step, self._rules.segment_frames
        frames = executor.put(frames)
        tokens: Tensor | None = None

        def encode(rows: slice) -> None:
            nonlocal tokens
            starts = range(step * rows.start, step * rows.stop, step)
            parts = stack(executor, [frames[start : start + width] for start in starts])
            part = executor.run(VIDEO_BACKBONE, {"segments": parts}, self._cancel)["tokens"]
            if self._pools:
                part = executor.run(VIDEO_POOL, {"tokens": part}, self._cancel)["sync"]
            if tokens is None:
                tokens = executor.empty((segments, *part.shape[1:]), np.float32)
            tokens[rows] = finite(part, VIDEO_BACKBONE)
            self._done += rows.stop - rows.start
            self._progress("encode", self._done, max(self._done, self.expected))

        def fewer(limit: int) -> None:
            executor.segments_per_batch = limit
            self.warnings.append(f"the GPU is low on memory: segments are encoded {limit} at a time")

        in_batches(segments, executor.segments_per_batch, encode, fewer)
        assert tokens is not None
        return tokens


class PictureEncoding:
    """Runs the image tower on frames (n, 3, S, S), 8 a second. Up to `most` are encoded when all are there.

    If more come, they are encoded while they are decoded, and their features leave memory.
    """

    def __init__(
        self,
        executor: Executor,
        most: int,
        *,
        open_writer: Callable[[], RowWriter],
        turn: Callable[[], AbstractContextManager[None]],
        progress: Progress,
        cancel: Event | None,
    ) -> None:
        self._executor, self._most, self._turn, self._cancel = executor, most, turn, cancel
        self._open_writer, self._progress = open_writer, progress
        self._waiting: list[Frames] = []
        self._found: list[npt.NDArray[np.float32]] = []
        self._writer: RowWriter | None = None
        self.warnings: list[str] = []

    def push(self, frames: Frames) -> None:
        """Take the next frames."""
        self._waiting.append(frames)
        count = sum(map(len, self._waiting))
        if self._writer is None and count > self._most:
            self._writer = self._open_writer()
        if self._writer is not None and count >= self._executor.segments_per_batch:
            self._encode()

    def finish(self) -> npt.NDArray[np.float32] | RowWriter:
        """Return the features (frames, width), or the writer that has them."""
        if self._waiting:
            self._encode()
        with self._turn():
            self._executor.idle(VIDEO_CLIP)
            self._executor.finish()
        return self._writer or np.concatenate(self._found)

    def _encode(self) -> None:
        frames = np.concatenate(self._waiting)
        self._waiting = []

        def run(rows: slice) -> npt.NDArray[np.float32]:
            with self._turn():
                features = self._executor.run(VIDEO_CLIP, {"frames": frames[rows]}, self._cancel)["features"]
                (values,) = self._executor.read(features)
            if self._writer is None:  # in a long clip the segments are counted
                self._progress("pictures", rows.stop, len(frames))
            return values

        def fewer(limit: int) -> None:
            self._executor.segments_per_batch = limit
            self.warnings.append(f"the GPU is low on memory: pictures are encoded {limit} at a time")

        values = np.concatenate(in_batches(len(frames), self._executor.segments_per_batch, run, fewer))
        if self._writer is None:
            self._found.append(finite(values, VIDEO_CLIP))
        else:
            self._writer.append(finite(values, VIDEO_CLIP))


class Encoding:
    """Encodes one clip from its frames: in one piece up to `window_s` seconds, else as `LongEncoding`."""

    def __init__(
        self,
        executor: Executor,
        rules: SequenceRules,
        window_s: float,
        *,
        cuts: Cuts | None,
        open_writer: Callable[[], RowWriter],
        turn: Callable[[], AbstractContextManager[None]],
        progress: Progress,
        cancel: Event | None,
    ) -> None:
        self._executor, self._rules, self._window_s = executor, rules, window_s
        self._cuts, self._open_writer, self._turn, self._progress = cuts, open_writer, turn, progress
        self._backbone = Backbone(executor, rules, progress, cancel)
        self._pieces: list[Frames] = []
        self._uploaded: list[Tensor] = []
        self._long: LongEncoding | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the work."""
        return tuple(self._backbone.warnings)

    def expect(self, frames: int) -> None:
        """Note how many frames will come, for the progress."""
        step, width = self._rules.segment_step, self._rules.segment_frames
        more = 0 if self.fits(frames) else step - 1  # in a long clip the last frame is repeated to fill a segment
        self._backbone.expected = max(1, (frames - width + more) // step + 1)

    def fits(self, frames: int) -> bool:
        """Whether so many frames are encoded in one piece."""
        return self._long is None and frames <= self._rules.lengths(self._window_s).frames

    def push(self, frames: Frames) -> None:
        """Take the next frames. They must not change afterwards."""
        if self._long is not None:
            self._long.push(frames)
            return
        self._pieces.append(frames)
        if not self.fits(sum(map(len, self._pieces))):
            self._lengthen()
        elif self._executor.loop is not None:  # a device takes the frames while more are read
            with self._turn():
                self._uploaded.append(self._executor.put(frames))

    def finish(self, duration_s: float) -> tuple[Tensor | RowWriter, tuple[Shot, ...]]:
        """Return the tokens (segments, tokens, width), or the writer that has them, and the shots."""
        if self._long is None and exact_seconds(duration_s) > exact_seconds(self._window_s):
            self._lengthen()
        if self._long is not None:
            return self._long.writer, self._long.finish(duration_s)
        with self._turn():
            return self.whole(concatenate(self._executor, self._uploaded or self._pieces), duration_s)

    def whole(self, frames: Tensor, duration_s: float) -> tuple[Tensor | RowWriter, tuple[Shot, ...]]:
        """Encode all frames of a clip, (T, 3, H, H), which may be on a device. Return what `finish` returns."""
        lengths = self._rules.lengths(duration_s)
        if exact_seconds(duration_s) > exact_seconds(self._window_s):
            for first in range(0, lengths.frames, _ROWS):
                self.push(self._executor.read(frames[first : min(first + _ROWS, lengths.frames)])[0])
            return self.finish(duration_s)
        tokens = self._backbone.tokens(frames[: lengths.frames], lengths.segments)
        self._executor.idle(VIDEO_BACKBONE)
        self._executor.finish()
        return tokens, (Shot(first_frame=0, first_segment=0, segments=lengths.segments),)

    def _lengthen(self) -> None:
        writer = self._open_writer()
        self._long = LongEncoding(self._backbone, self._executor, self._rules, writer, self._cuts, self._turn)
        for frames in self._pieces:
            self._long.push(frames)
        self._pieces.clear()
        self._uploaded.clear()


class LongEncoding:
    """Encodes a video that is longer than a window. Each shot has a grid of segments that begins with it."""

    def __init__(
        self,
        backbone: Backbone,
        executor: Executor,
        rules: SequenceRules,
        writer: RowWriter,
        cuts: Cuts | None,
        turn: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._backbone, self._executor, self._rules = backbone, executor, rules
        self.writer, self._cuts, self._turn = writer, cuts, turn
        self.shots: list[Shot] = []
        self._waiting = np.empty((0, 3, rules.image_size, rules.image_size), np.uint8)
        """Frames that may still begin another shot."""
        self._pieces: list[Frames] = []
        """Frames of the shot, from its next segment on."""
        self._taken = self._begun = self._segments = 0
        """Frames that belong to a shot, the first of the current one, and segments of the whole video so far."""

    def push(self, frames: Frames) -> None:
        """Encode the segments that the next frames complete. The frames must not change afterwards."""
        if self._cuts is None:
            self._extend(frames)
            return
        self._cuts.push(frames)
        self._waiting = np.concatenate([self._waiting, frames])
        there = self._taken + len(self._waiting)
        self._settle(max(self._taken, min(self._cuts.settled, there - MIN_SHOT_FRAMES + 1)))

    def finish(self, duration_s: float) -> tuple[Shot, ...]:
        """Encode the rest of a video of this length, and return its shots."""
        self._extend(self._waiting)
        wanted = -int(-exact_seconds(duration_s) * self._rules.fps // 1)
        self._close(wanted)
        with self._turn():
            self._executor.idle(VIDEO_BACKBONE)
            self._executor.finish()
        return tuple(self.shots)

    def _settle(self, settled: int) -> None:
        """Take the frames before `settled` into shots."""
        cuts = [] if self._cuts is None else [cut for cut in self._cuts.cuts if self._taken <= cut < settled]
        for cut in [*cuts, settled]:
            count = cut - self._taken
            self._extend(self._waiting[:count])
            self._waiting = self._waiting[count:]
            if cut != settled and cut - self._begun >= MIN_SHOT_FRAMES:
                self._close(cut)
                self._begun = cut

    def _extend(self, frames: Frames) -> None:
        self._pieces.append(frames)
        self._taken += len(frames)
        ready = (self._there() - self._rules.segment_frames) // self._rules.segment_step + 1
        batch = max(1, self._executor.segments_per_batch)
        if ready >= batch:
            self._encode(ready - ready % batch)

    def _close(self, end: int) -> None:
        """End the shot before the frame `end`. Its last frame is repeated until segments cover all of it."""
        step, width = self._rules.segment_step, self._rules.segment_frames
        first = self.shots[-1].first_segment + self.shots[-1].segments if self.shots else 0
        total = max(0, -(-(end - self._begun - width) // step)) + 1
        left = total - (self._segments - first)
        if left > 0:
            missing = max(0, width + (left - 1) * step - self._there())
            last = next(piece for piece in reversed(self._pieces) if len(piece))
            self._pieces.append(np.repeat(last[-1:], missing, axis=0))
            self._encode(left)
        self.shots.append(Shot(first_frame=self._begun, first_segment=first, segments=self._segments - first))
        self._pieces = []

    def _there(self) -> int:
        return sum(len(piece) for piece in self._pieces)

    def _encode(self, segments: int) -> None:
        frames = np.concatenate(self._pieces)
        with self._turn():
            tokens = self._backbone.tokens(frames, segments)
            (values,) = self._executor.read(tokens)
        self.writer.append(finite(values, VIDEO_BACKBONE))
        self._segments += segments
        self._pieces = [frames[segments * self._rules.segment_step :]]
