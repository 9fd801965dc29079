"""Scenes of the demo's world: objects at random places with events at random times, rendered from only a seed.

A training clip has one object that sounds, and distractors that move in silence. A composed scene has two sounding
objects in one frame, with interleaved events. Only the network that makes one mixed track is trained with these. They
can be longer than a training clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from selva_ref.demo.world.canvas import Array, Canvas, Colour, Silhouette
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.looks import LOOKS, Clocks, Place
from selva_ref.demo.world.sounds import RATE_HZ, Sound, Voice, draw_voice, soundtrack

FPS = 25
FRAMES = 104
"""A length that the segments cover exactly: 12 segments of 16 frames, one every 8."""
DURATION_S = FRAMES / FPS
SAMPLES = FRAMES * RATE_HZ // FPS
SIZE = 64
FIRST_S, LAST_S = 0.3, 3.75
MIN_GAP_S = 0.5
FAR_S = 9.0
"""The value of a clock if there is no event."""


@dataclass(frozen=True, kw_only=True)
class SoundSource:
    """One object that sounds."""

    kind: str
    place: Place
    colour: Colour
    voice: Voice
    events_s: npt.NDArray[np.float64]
    """Times at which it sounds, seconds, ascending."""

    def sound(self, samples: int = SAMPLES) -> Sound:
        """The stem of this source alone, (samples,)."""
        return soundtrack(self.kind, self.voice, self.events_s, samples)


@dataclass(frozen=True, kw_only=True)
class Distractor:
    """An object that moves and makes no sound."""

    shape: str
    x: Array
    y: Array
    size: float
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a clip shows."""

    sources: tuple[SoundSource, ...]
    distractors: tuple[Distractor, ...]
    sky: Colour
    ground: Colour
    grain: float
    seed: int
    frames: int = FRAMES

    def sound(self, samples: int = SAMPLES) -> Sound:
        """All that sounds in the scene, (samples,)."""
        mixed: Sound = np.sum([source.sound(samples) for source in self.sources], axis=0, dtype=np.float32)
        return mixed


def draw_events(rng: np.random.Generator, frames: int = FRAMES) -> npt.NDArray[np.float64]:
    """Draws two to five times for every `FRAMES` frames, at least `MIN_GAP_S` apart, otherwise uniform.

    A longer scene has no quiet moments at regular intervals, because the gaps of each part shift those after it.
    """
    counts = [int(rng.integers(2, 6)) for _ in range(round(frames / FRAMES))]
    slack = LAST_S + (frames - FRAMES) / FPS - FIRST_S - (sum(counts) - 1) * MIN_GAP_S
    parts = pairwise(np.linspace(0, slack, len(counts) + 1))
    drawn = [np.sort(rng.uniform(low, high, count)) for count, (low, high) in zip(counts, parts, strict=True)]
    return FIRST_S + np.concatenate(drawn) + MIN_GAP_S * np.arange(sum(counts))


def _colour(rng: np.random.Generator, low: float, high: float) -> Colour:
    red, green, blue = (float(v) for v in rng.uniform(low, high, 3))
    return red, green, blue


def draw_source(rng: np.random.Generator, kind: str, place: Place, frames: int = FRAMES) -> SoundSource:
    """Draws an object of a kind with its own colour, voice and event times."""
    return SoundSource(
        kind=kind, place=place, colour=_colour(rng, 0.45, 1.0), voice=draw_voice(rng), events_s=draw_events(rng, frames)
    )


def draw_place(rng: np.random.Generator, left: float = 0.0, right: float = 1.0) -> Place:
    """Draws a place between two columns of the frame, entirely visible."""
    size = float(rng.uniform(0.42, 0.6)) if right - left > 0.8 else float(rng.uniform(0.42, 0.49))
    margin = 0.48 * size
    return Place(
        x=float(rng.uniform(left + margin, right - margin)), y=float(rng.uniform(margin, 1 - margin)), size=size
    )


def _distractor(rng: np.random.Generator, time_s: Array) -> Distractor:
    period, phase = rng.uniform(1.2, 4.0, 2), rng.uniform(0, 2 * np.pi, 2)
    middle, reach = rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.3, 2)
    x, y = (m + r * np.sin(2 * np.pi * time_s / p + f) for m, r, p, f in zip(middle, reach, period, phase, strict=True))
    return Distractor(
        shape=str(rng.choice(["disc", "bar", "box"])),
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        size=float(rng.uniform(0.04, 0.1)),
        colour=_colour(rng, 0.1, 0.9),
    )


def frame_times(start: int = 0, stop: int = FRAMES) -> Array:
    """Time of each frame from `start` to before `stop`, seconds."""
    return (np.arange(start, stop) / FPS).astype(np.float32)


def _scene(rng: np.random.Generator, sources: Sequence[SoundSource], frames: int = FRAMES) -> Scene:
    return Scene(
        sources=tuple(sources),
        distractors=tuple(_distractor(rng, frame_times(0, frames)) for _ in range(int(rng.integers(0, 4)))),
        sky=_colour(rng, 0.05, 0.6),
        ground=_colour(rng, 0.05, 0.6),
        grain=float(rng.uniform(0, 0.04)),
        seed=int(rng.integers(2**31)),
        frames=frames,
    )


def single_scene(seed: Sequence[int], kind: str | None = None) -> Scene:
    """Makes one sounding object and distractors; the same seed gives the same scene."""
    rng = np.random.default_rng(list(seed))
    drawn = str(rng.choice(KINDS))
    return _scene(rng, [draw_source(rng, kind or drawn, draw_place(rng))])


def composed_scene(seed: Sequence[int], kinds: tuple[str, str] | None = None, frames: int = FRAMES) -> Scene:
    """Makes two objects side by side in one frame, neither squeezed; their events interleave.

    Their kinds differ unless `kinds` names the same one twice.
    """
    rng = np.random.default_rng(list(seed))
    left, right = kinds or (str(k) for k in rng.choice(KINDS, 2, replace=False))
    sources = [
        draw_source(rng, left, draw_place(rng, 0.0, 0.5), frames),
        draw_source(rng, right, draw_place(rng, 0.5, 1.0), frames),
    ]
    return _scene(rng, sources, frames)


def clocks(events_s: npt.NDArray[np.float64], times_s: Array) -> Clocks:
    """Time since the last event and until the next one, at every frame."""
    gap = times_s[:, None] - events_s[None].astype(np.float32)
    since = np.where(gap >= 0, gap, FAR_S).min(1)
    until = np.where(gap < 0, -gap, FAR_S).min(1)
    return Clocks(since=since.astype(np.float32), until=until.astype(np.float32))


def render(scene: Scene, size: int = SIZE, times_s: Array | None = None) -> npt.NDArray[np.uint8]:
    """Renders all frames, or those at some times (seconds): (frames, 3, size, size). Distractors are interpolated."""
    own = frame_times(0, scene.frames)
    times_s = own if times_s is None else times_s
    canvas = Canvas(len(times_s), size)
    canvas.gradient(scene.sky, scene.ground)
    for item in scene.distractors:
        x, y = (np.interp(times_s, own, place).astype(np.float32) for place in (item.x, item.y))
        _paint_distractor(canvas, replace(item, x=x, y=y))
    for source in scene.sources:
        LOOKS[source.kind](canvas, source.place, clocks(source.events_s, times_s), source.colour)
    return canvas.frames_uint8(np.random.default_rng(scene.seed), scene.grain)


def silhouettes(scene: Scene, size: int = SIZE) -> list[npt.NDArray[np.uint8]]:
    """Renders where each source is, uint8 (frames, size, size): what a perfect segmenter would give as its mask."""
    found = []
    for source in scene.sources:
        canvas = Silhouette(scene.frames, size)
        LOOKS[source.kind](canvas, source.place, clocks(source.events_s, frame_times(0, scene.frames)), source.colour)
        found.append((canvas.picture[..., 0] * 255 + 0.5).astype(np.uint8))
    return found


def _paint_distractor(canvas: Canvas, item: Distractor) -> None:
    x, y, half = item.x, item.y, item.size
    if item.shape == "disc":
        canvas.disc(x, y, half, item.colour)
    elif item.shape == "bar":
        canvas.bar(x - half, y - half, x + half, y + half, half / 2, item.colour)
    else:
        canvas.box(x - half, y - half, x + half, y + half, item.colour)
