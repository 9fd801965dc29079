"""What training reads from a video file: the frames of one clip and, once, for extraction, its sound.

This module does not import PyTorch, so that the decoding processes start quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selva_bundle.errors import MediaError, MediaNotFoundError, SelvaError
from selva_bundle.lengths import SequenceRules
from selva_ref.training.data.sound import read_sound
from selva_ref.training.errors import SkippedClip
from selva_runtime.media.video import VideoClip, read_clip


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One clip, as used for extraction."""

    frames: NDArray[np.uint8]
    """(T, 3, size, size)."""
    wave: NDArray[np.float32]
    """(2 * hop * latent length,) in [-1, 1]."""


def read_frames(path: Path, rules: SequenceRules, duration_s: float) -> NDArray[np.uint8]:
    """The first `duration_s` seconds of a video, (T, 3, size, size).

    Raises:
        SkippedClip: the video is missing, broken or too short; the reason names the file.
    """
    return _clip(path, rules, duration_s).frames


def read_example(path: Path, rules: SequenceRules, duration_s: float) -> Example:
    """Reads frames and sound of the first `duration_s` seconds.

    Raises:
        SkippedClip: the video is missing, broken, too short or silent; the reason names the file.
    """
    clip = _clip(path, rules, duration_s)
    samples = 2 * rules.hop * rules.lengths(duration_s).latent
    try:
        wave = read_sound(path, rate_hz=rules.sample_rate_hz, start_s=clip.video_start_s, samples=samples)
    except SkippedClip:
        raise
    except SelvaError as error:
        raise SkippedClip("broken", str(error)) from error
    return Example(frames=clip.frames, wave=wave)


def _clip(path: Path, rules: SequenceRules, duration_s: float) -> VideoClip:
    try:
        clip = read_clip(
            path, size=rules.image_size, fps=rules.fps, duration_s=duration_s, min_duration_s=1 / rules.fps
        )
    except MediaNotFoundError as error:
        raise SkippedClip("missing", f"{path}: no such file") from error
    except MediaError as error:
        raise SkippedClip("broken", str(error)) from error
    if len(clip.frames) < rules.lengths(duration_s).frames:
        raise SkippedClip("short", f"{path}: {clip.duration_s:.2f} s of video, but {duration_s:.2f} s are needed")
    if clip.warnings:
        raise SkippedClip("broken", clip.warnings[0])
    return clip


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads clips by row, and reports a skipped clip as "kind: reason"."""

    paths: tuple[Path, ...]
    rules: SequenceRules
    duration_s: float

    def __call__(self, row: int) -> tuple[int, Example | str]:
        """Returns the row and its clip, or the reason it was skipped. Never raises for a fault in the file."""
        try:
            return row, read_example(self.paths[row], self.rules, self.duration_s)
        except SkippedClip as skipped:
            return row, " ".join(f"{skipped.kind}: {skipped}".split())
