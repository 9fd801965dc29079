"""Divide a long video into windows of the length that the model was trained on.

A window shows two stretches of the video: the *anchor*, which is a part of the first window, and a part of its own. The
states of the flow in the anchor, and in the overlap with the window before, are known and held while the rest is
generated. So a window continues the sound before it and keeps the voice of the first one.

A shot begins with a new window and ends with one, so that no sound passes a cut. All windows have the same shape: in a
shot that is too short to fill one, the anchor is longer.

A *unit* is the distance between two segments: 8 frames, 0.32 s. n segments show n + 1 units. Places count latent
vectors from the begin of the clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import RequestError
from selva_bundle.lengths import Lengths, LongForm, SequenceRules

Slices = tuple[tuple[int, int], ...]
"""(first, stop) of stretches of a clip's segments, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A stretch of the video without a cut. Its segments lie on a grid that begins with its first frame."""

    first_frame: int
    first_segment: int
    """Index of its first segment among those of the clip."""
    segments: int
    """The last frame is repeated until the segments cover all frames of the shot."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one run of the flow generates: `anchor` latent vectors that are held, then the window's own."""

    segments: Slices
    """The segments that it shows after the anchor."""
    lengths: Lengths
    """With the anchor."""
    start: int
    """Place of the first of its own latent vectors."""
    final: int
    """The latents before this place are final after this window."""
    anchor: int = 0
    """Latent vectors at the begin that are held as in the first window."""
    anchor_segments: int = 0
    """Segments of the first window that these show."""
    known: int = 0
    """Latent vectors of its own, from its start on, that are known from before."""
    fade: int = 0
    """The last of these, over which the new ones replace the old ones."""
    known_after: int = 0
    """Latent vectors at the end that are known."""
    fade_after: int = 0
    """The first of these, over which the old ones follow the new ones."""

    @property
    def stop(self) -> int:
        """Place after the last latent vector of its own. It may be past the end of the shot."""
        return self.start + self.lengths.latent - self.anchor

    def weights(self, guard: float) -> npt.NDArray[np.float32]:
        """(latent,) how much of each latent vector is held, from 0 (free) to 1 (known).

        `guard` is the share of a fade at each end in which nothing changes.
        """
        weights = np.zeros(self.lengths.latent, np.float32)
        known = self.anchor + self.known
        weights[: known - self.fade] = 1
        weights[known - self.fade : known] = fade_out(self.fade, guard)
        after = len(weights) - self.known_after
        weights[after + self.fade_after :] = 1
        weights[after : after + self.fade_after] = fade_out(self.fade_after, guard)[::-1]
        return weights


def fade_out(length: int, guard: float) -> npt.NDArray[np.float32]:
    """(length,) weights from 1 to 0: 1 in the first `guard` of the length, 0 in the last, linear between."""
    places = (np.arange(length) + 0.5) / max(1, length)
    return np.clip((1 - guard - places) / max(1e-6, 1 - 2 * guard), 0, 1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Frames, segments and latent vectors of a clip that is longer than a window."""

    rules: SequenceRules
    form: LongForm
    shots: tuple[Shot, ...]
    latent: int
    """Latent vectors of the clip."""

    @property
    def window(self) -> Lengths:
        """Lengths of a window."""
        frames = self.rules.segment_frames + (self.form.window_segments - 1) * self.rules.segment_step
        return self.rules.lengths(float(Fraction(frames, self.rules.fps)))

    @property
    def segments(self) -> int:
        """Segments of the clip."""
        return self.shots[-1].first_segment + self.shots[-1].segments

    @property
    def overlap(self) -> int:
        """Latent vectors that two windows have in common."""
        return self.units(self.form.overlap_segments)

    def place(self, frame: int) -> int:
        """Place of the latent vector that begins nearest to a frame.

        A frame is 1.25 latent vectors long at 16 kHz. At 44.1 kHz it is 1.72, so the place is off by up to 11.6 ms.
        """
        return round(frame * Fraction(self.rules.sample_rate_hz, self.rules.fps * 2 * self.rules.hop))

    @property
    def unit(self) -> Fraction:
        """Latent vectors in a unit."""
        return unit_length(self.rules)

    def units(self, count: int) -> int:
        """Latent vectors in `count` units, rounded."""
        return round(count * self.unit)

    def begin(self, shot: Shot, unit: int = 0) -> int:
        """Place at which a unit of a shot begins."""
        return self.place(shot.first_frame + unit * self.rules.segment_step)

    def end(self, shot: Shot) -> int:
        """Place at which a shot ends."""
        after = next((other for other in self.shots if other.first_segment > shot.first_segment), None)
        return self.latent if after is None else self.begin(after)

    def show(self, first: int, count: int) -> Slices:
        """`count` segments of the clip from `first` on."""
        return stretches(first, count, self.segments)

    def own_segments(self, segments: int) -> int:
        """Segments beside the anchor in each window of a shot that has this many."""
        return min(self.form.window_segments - self.form.anchor_segments, segments)

    def anchored(self, shot: Shot, unit: int, own: int) -> Window:
        """Make a window that shows the anchor and `own` segments of a shot from `unit` on."""
        anchor = self.form.window_segments - own
        return Window(
            segments=self.show(shot.first_segment + unit, own),
            lengths=self.window,
            start=self.begin(shot, unit),
            anchor=self.units(anchor),
            anchor_segments=anchor,
            final=0,
        )


def stretches(first: int, count: int, total: int) -> Slices:
    """`count` of `total` segments from `first` on. After the last one follows the first."""
    pieces: list[tuple[int, int]] = []
    while count:
        first %= total
        part = min(count, total - first)
        pieces.append((first, first + part))
        first, count = first + part, count - part
    return tuple(pieces)


def pictures_shown(
    shown: Slices, shots: tuple[Shot, ...], rules: SequenceRules, *, count: int, total: int
) -> npt.NDArray[np.int64]:
    """(count,) which of a clip's `total` pictures, 8 a second, the visual tokens of a window stand for.

    `shown` are the segments of the window, its anchor included. Where segments repeat the last frame of a shot, so do
    the pictures.
    """
    segments = [segment for first, stop in shown for segment in range(first, stop)]
    found = []
    for token in range(count):
        frame = Fraction(token * rules.fps, rules.clip_fps)
        unit = min(int(frame // rules.segment_step), len(segments) - 1)
        number = max(i for i, shot in enumerate(shots) if shot.first_segment <= segments[unit])
        shot = shots[number]
        frame += shot.first_frame + (segments[unit] - shot.first_segment - unit) * rules.segment_step
        if number + 1 < len(shots):
            frame = min(frame, Fraction(shots[number + 1].first_frame - 1))
        found.append(min(int(frame * rules.clip_fps // rules.fps), total - 1))
    return np.array(found, np.int64)


def unit_length(rules: SequenceRules) -> Fraction:
    """Latent vectors in a unit: 10 at 16 kHz, 13.78 at 44.1 kHz."""
    return Fraction(rules.segment_step * rules.sample_rate_hz, rules.fps * 2 * rules.hop)


def one_pass(lengths: Lengths) -> Window:
    """The only window of a clip that is generated in one pass."""
    return Window(segments=((0, lengths.segments),), lengths=lengths, start=0, final=lengths.latent)


def plan(grid: Grid, *, opening: Window | None = None, loop: bool = False) -> list[Window]:
    """Return the windows of a clip, in order. In a `loop` the last one leads back to the begin of the clip.

    `opening` replaces the first window.

    Raises:
        RequestError: the clip is too short for a loop.
    """
    window = Window(segments=grid.show(0, grid.form.window_segments), lengths=grid.window, start=0, final=0)
    first = opening or window
    found: list[Window] = []
    for shot in grid.shots:
        found += _cover(grid, shot, None if found else first, loop=loop and shot is grid.shots[-1])
    return found


def _cover(grid: Grid, shot: Shot, opening: Window | None, *, loop: bool) -> list[Window]:
    """Return the windows of a shot. In a `loop` the begin of the clip follows its end."""
    end = loop_length(grid) if loop else grid.end(shot)
    target = end + grid.overlap if loop else end
    segments = shot.segments + (grid.form.overlap_segments - 1 if loop else 0)
    own = grid.own_segments(segments)
    last_unit = segments - own

    def at(unit: int) -> Window:
        window = grid.anchored(shot, unit, own)
        if unit < last_unit:
            return window
        window = _reaching(window, target)
        return replace(window, known_after=max(0, window.stop - end)) if loop else window

    found = [opening or at(0)]
    while (before := found[-1]).stop < target or (loop and before is opening):
        covered = round((before.stop - grid.begin(shot)) / grid.unit)
        window = at(max(0, min(covered - grid.form.overlap_segments, last_unit)))
        known = min(before.stop, end) - window.start
        found.append(replace(window, known=known, fade=min(known, grid.overlap)))
    found[-1] = replace(found[-1], final=end)
    for i in range(len(found) - 1):
        following = found[i + 1]
        found[i] = replace(found[i], final=following.start + following.known - following.fade)
    return found


def _reaching(window: Window, target: int) -> Window:
    """Shorten the anchor of a shot's last window if rounding leaves its end a latent vector before the target."""
    missing = max(0, target - window.stop)
    if window.anchor:
        return replace(window, anchor=window.anchor - missing)
    return replace(window, start=window.start + missing)


def region_windows(grid: Grid, first: int, stop: int, *, opening: Window | None = None) -> list[Window]:
    """Return windows that generate the latents from the place `first` to `stop` again. All others are known.

    `opening` is the only window of a clip that has one.
    """
    found: list[Window] = []
    for shot in grid.shots:
        begin, end = max(first, grid.begin(shot)), min(stop, grid.end(shot))
        ramp = min(grid.overlap // 2, (end - begin) // 4)
        before, after = ramp if begin > grid.begin(shot) else 0, ramp if end < grid.end(shot) else 0
        own, done = grid.own_segments(shot.segments), begin + before
        unit = math.floor((done - grid.overlap - grid.begin(shot)) / grid.unit)
        while begin < end and done < end:
            unit = max(0, min(unit, shot.segments - own))
            window = opening or grid.anchored(shot, unit, own)
            if opening is None and unit == shot.segments - own:
                window = _reaching(window, grid.end(shot))
            is_last, known = window.stop >= end, done - window.start
            found.append(
                replace(
                    window,
                    known=known,
                    fade=min(before, known, done - begin),
                    known_after=window.stop - end + after if is_last else 0,
                    fade_after=after if is_last else 0,
                    final=min(end, window.stop),
                )
            )
            before, done, unit = grid.overlap, window.stop, unit + own + 1 - grid.form.overlap_segments
    return found


def loop_length(grid: Grid) -> int:
    """Latent vectors of a loop. It leaves out the last unit, so that the last segment looks ahead to the begin.

    Raises:
        RequestError: the clip is too short.
    """
    last = grid.shots[-1]
    anchor = grid.form.anchor_segments
    least = max(anchor, grid.form.window_segments - anchor, 2 * grid.form.overlap_segments + 2)
    if grid.segments < least:
        frames = grid.rules.segment_frames + (least - 1) * grid.rules.segment_step
        raise RequestError(f"the video is too short for a loop; give at least {frames / grid.rules.fps:.2f} s")
    return grid.begin(last, last.segments)


def joins_s(windows: list[Window], rules: SequenceRules) -> tuple[float, ...]:
    """Seconds of the joins between windows: the middles of the fades, and cuts."""
    latents_per_s = rules.sample_rate_hz / (2 * rules.hop)
    return tuple((window.start + window.known - window.fade / 2) / latents_per_s for window in windows[1:])
