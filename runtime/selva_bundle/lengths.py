"""Lengths from a duration in seconds: frames, segments, latents, tokens and samples.

The networks set the rules and the bundle's manifest stores them. Durations arrive as binary floats, so each is read
as the number that was meant (12.04, a third): 12.04 s at 25 frames a second is exactly 301 frames, never 300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
import numpy.typing as npt


def exact_seconds(seconds: float) -> Fraction:
    """Return the fraction that was meant: 1204/100 for 12.04, not the nearest binary number."""
    return Fraction(seconds).limit_denominator(1_000_000)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of one clip in every stage of the pipeline."""

    frames: int
    """Video frames that the model sees."""
    segments: int
    """Overlapping groups of frames. The backbone sees one at a time."""
    sync: int
    """Sync features of all segments."""
    latent: int
    """Latent vectors of the generator."""
    visual: int
    """Tokens of the generator's visual stream."""
    samples: int
    """Audio samples of the stem, exactly the duration. The decoder's output is trimmed to this."""

    @property
    def axes(self) -> dict[str, int]:
        """Sizes of those axes of the graphs that depend on the duration. "clip" is the graphs' name for `visual`."""
        return {"segments": self.segments, "latent": self.latent, "clip": self.visual}


FRAME_FITS = ("squash", "crop")
_LIMITS = {
    "sample_rate_hz": 192_000,
    "hop": 8192,
    "latent_width": 4096,
    "fps": 240,
    "clip_fps": 240,
    "segment_frames": 1024,
    "segment_step": 1024,
    "sync_per_segment": 1024,
    "image_size": 4096,
    "clip_image_size": 4096,
    "min_duration_s": 3600,
    "max_duration_s": 3600,
}
"""Upper limits. They are far above any model's values, and low enough that no stage can run forever."""


@dataclass(frozen=True, kw_only=True)
class SequenceRules:
    """The manifest's `sequence`.

    Raises:
        ValueError: a number is out of range or does not fit the others.
    """

    sample_rate_hz: int
    hop: int
    """Audio samples per mel frame. A latent vector spans two mel frames."""
    latent_width: int
    fps: int
    clip_fps: int
    segment_frames: int
    segment_step: int
    """Frames between the starts of two segments."""
    sync_per_segment: int
    image_size: int
    """Height and width of a frame, pixels."""
    min_duration_s: float
    max_duration_s: float
    frame_fit: str = "squash"
    """How a frame becomes square. "squash" does not keep the aspect ratio. "crop" scales the shorter side to the size
    and keeps the middle."""
    clip_image_size: int = 0
    """Height and width of the frames that the image tower sees, squashed. 0: the model has no image tower."""
    sync_timing: str = "even"
    """How sync features are assigned to latent vectors. "even" spreads them over the clip, as the official weights
    learned it. "shown" gives each latent vector the feature that shows its moment."""

    def __post_init__(self) -> None:
        if self.sync_timing not in ("even", "shown"):
            raise ValueError(f"sequence.sync_timing is {self.sync_timing!r}, not 'even' or 'shown'")
        if self.frame_fit not in FRAME_FITS:
            raise ValueError(f"sequence.frame_fit is {self.frame_fit!r:.40}, not 'squash' or 'crop'")
        for field in fields(self):
            if field.name not in _LIMITS:
                continue
            if field.name == "clip_image_size" and self.clip_image_size == 0 and self.clip_image_size is not False:
                continue
            value, limit = getattr(self, field.name), _LIMITS[field.name]
            kinds = (int, float) if field.name.endswith("_s") else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= limit:
                raise ValueError(f"sequence.{field.name} is {value!r:.40}, not a number above 0 and up to {limit}")
        if self.min_duration_s > self.max_duration_s:
            raise ValueError(f"sequence.min_duration_s {self.min_duration_s} is above {self.max_duration_s}")
        if math.floor(exact_seconds(self.min_duration_s) * self.fps) < self.segment_frames:
            raise ValueError(f"sequence.min_duration_s {self.min_duration_s} is shorter than one segment")

    def lengths(self, duration_s: float) -> Lengths:
        """Return the lengths of a clip of `duration_s` seconds, which must be within the rules' limits."""
        seconds = exact_seconds(duration_s)
        frames = math.floor(seconds * self.fps)
        segments = (frames - self.segment_frames) // self.segment_step + 1
        return Lengths(
            frames=frames,
            segments=segments,
            sync=segments * self.sync_per_segment,
            latent=math.ceil(seconds * self.sample_rate_hz / (2 * self.hop)),
            visual=max(1, math.floor(seconds * self.clip_fps)),
            samples=round(seconds * self.sample_rate_hz),
        )


@dataclass(frozen=True, kw_only=True)
class LongForm:
    """The manifest's `long_form`: how videos longer than a window are generated. See `selva_runtime.windows`.

    Raises:
        ValueError: the numbers do not fit each other.
    """

    window_segments: int
    """Segments that a window shows: as many as the clips that the model was trained on."""
    anchor_segments: int
    """The first of these, in every window but the first, repeat the begin of the video to keep its voice."""
    overlap_segments: int
    """Distance between two segments, times this, is what two windows have in common."""
    guard: float = 0.25
    """Share of the overlap at each end in which nothing is faded."""

    def __post_init__(self) -> None:
        for name in ("window_segments", "anchor_segments", "overlap_segments"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1024:
                raise ValueError(f"long_form.{name} is {value!r:.40}, not a whole number from 0 to 1024")
        if self.window_segments - self.anchor_segments <= self.overlap_segments:
            raise ValueError("long_form leaves no new segments in a window")
        if isinstance(self.guard, bool) or not isinstance(self.guard, (int, float)) or not 0 <= self.guard < 0.5:
            raise ValueError(f"long_form.guard is {self.guard!r:.40}, not a number from 0 to below 0.5")

    @classmethod
    def of(cls, rules: SequenceRules, window_s: float) -> LongForm:
        """Return the usual proportions for windows of `window_s` seconds: a quarter anchor, an eighth overlap."""
        segments = rules.lengths(window_s).segments
        overlap = min(max(1, segments // 8), segments - 1)
        return cls(window_segments=segments, anchor_segments=segments // 4, overlap_segments=overlap)


def nearest_exact_indices(source: int, target: int) -> npt.NDArray[np.int64]:
    """(target,) indices into `source` items, equal to PyTorch's `interpolate(mode="nearest-exact")` in float32."""
    scale = np.float32(source) / np.float32(target)
    middles = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale
    indices: npt.NDArray[np.int64] = np.floor(middles).astype(np.int64)
    return np.minimum(indices, np.int64(source - 1))


def shown_indices(source: int, target: int, frames_per_target: float) -> npt.NDArray[np.int64]:
    """(target,) indices of the sync features that show the moments of `target` latent vectors.

    Segments overlap by half, so feature 8s + j shows frames 8s + 2j and 8s + 2j + 1. If two features show the same
    frames, the one nearer to the middle of its segment is used, because it sees more before and after.
    """
    segment, place = np.divmod(np.arange(source), 8)
    shown = 8 * segment + 2 * place + 1  # frames from the start of the clip to the middle of the pair
    asked = (np.arange(target)[:, None] + 0.5) * frames_per_target
    order = np.round(np.abs(shown - asked), 6) + 1e-7 * np.abs(place - 3.5)
    indices: npt.NDArray[np.int64] = order.argmin(1).astype(np.int64)
    return indices


def sync_indices(rules: SequenceRules, lengths: Lengths) -> npt.NDArray[np.int64]:
    """(latent,) index of the sync feature for each latent vector."""
    if rules.sync_timing == "even":
        return nearest_exact_indices(lengths.sync, lengths.latent)
    return shown_indices(lengths.sync, lengths.latent, rules.fps * 2 * rules.hop / rules.sample_rate_hz)


def sync_rows(rules: SequenceRules, lengths: Lengths, stems: int) -> npt.NDArray[np.int64]:
    """(2 stems, latent) row of sync features for each latent vector: first the conditional half, then the empty half.

    Row numbers count the stems' own features first. The rows of empty features follow: those of a first segment, a
    middle one, a last one and an only one.
    """
    indices, each = sync_indices(rules, lengths), rules.sync_per_segment
    segment, place = np.divmod(indices, each)
    last = lengths.segments - 1
    kind = np.where(segment == 0, 0, np.where(segment == last, 2, 1)) if last else 3
    empty = stems * lengths.sync + kind * each + place
    return np.stack([*(stem * lengths.sync + indices for stem in range(stems)), *[empty] * stems])


def latent_positions(lengths: Lengths) -> npt.NDArray[np.float32]:
    """(latent,) rotary positions of the latent stream, which count from 0."""
    return np.arange(lengths.latent, dtype=np.float32)


def visual_positions(lengths: Lengths) -> npt.NDArray[np.float32]:
    """(visual,) rotary positions of the visual stream, stretched to the length of the latent stream."""
    return np.arange(lengths.visual, dtype=np.float32) * np.float32(lengths.latent / lengths.visual)
