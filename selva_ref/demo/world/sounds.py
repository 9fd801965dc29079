"""How the objects of the demo's world sound: one short sound per event, with a sharp start, over within 0.45 s.

Each source has its own pitch and loudness, so that clips differ. Two rules help a small vocoder. All tones are
multiples of 62.5 Hz, the rate of mel frames, and their phase follows the clip's time, so that the content of a frame
determines its samples. Higher tones are further apart, as mel bands are, so that each tone has a band of its own.
Shapes: n samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Sound = npt.NDArray[np.float32]

RATE_HZ = 16_000
GRID_HZ = 62.5
COARSER_FROM_HZ = (1200.0, 3000.0)
"""Frequencies at which the distance between neighbouring tones doubles."""
ATTACK_S = 0.002
RELEASE_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How one source sounds throughout a clip."""

    pitch: float
    """Factor on every frequency of its kind, before rounding to the grid."""
    level: float
    """Peak of a sound, relative to full scale."""
    grain: int
    """Seed of its noise."""


def draw_voice(rng: np.random.Generator) -> Voice:
    """Draws a voice from the range used in the demo's world."""
    pitch, level = rng.uniform(0.88, 1.14), rng.uniform(0.35, 0.7)
    return Voice(pitch=float(pitch), level=float(level), grain=int(rng.integers(2**31)))


def on_grid(hz: float) -> float:
    """The nearest tone on the grid."""
    step_hz: float = GRID_HZ * 2 ** sum(hz >= limit for limit in COARSER_FROM_HZ)
    return step_hz * max(1, round(hz / step_hz))


@dataclass(frozen=True)
class Moment:
    """The samples of one event: time since it began, and time in the clip."""

    voice: Voice
    since_s: npt.NDArray[np.float64]
    clip_s: npt.NDArray[np.float64]

    def tone(self, hz: float) -> npt.NDArray[np.float64]:
        """A sine at the voice's pitch, on the grid, with phase zero at the start of every mel frame."""
        return np.sin(2 * np.pi * on_grid(hz * self.voice.pitch) * self.clip_s)

    def struck(self, *partials: tuple[float, float, float]) -> npt.NDArray[np.float64]:
        """Damped tones, each (Hz, level, decay per second)."""
        tones = (level * self.tone(hz) * np.exp(-decay * self.since_s) for hz, level, decay in partials)
        return sum(tones, np.zeros_like(self.since_s))

    def sung(self, notes: Sequence[float], each_s: float) -> npt.NDArray[np.float64]:
        """Tones one after the other, each fading in and out."""
        sound = np.zeros_like(self.since_s)
        for index, hz in enumerate(notes):
            place = (self.since_s - index * each_s) / each_s
            sound += self.tone(hz) * np.sqrt(np.clip(np.sin(np.pi * place), 0, 1)) * ((place >= 0) & (place < 1))
        return sound

    def noise(self, smooth: int = 1) -> npt.NDArray[np.float64]:
        """White noise, averaged over `smooth` samples."""
        noise = np.random.default_rng(self.voice.grain).standard_normal(self.since_s.size)
        return np.convolve(noise, np.ones(smooth) / np.sqrt(smooth), "same")


def _ball(m: Moment) -> npt.NDArray[np.float64]:
    return m.struck((125, 1.0, 22), (250, 0.5, 30), (437, 0.25, 45)) + 0.15 * m.noise(6) * np.exp(-220 * m.since_s)


def _hammer(m: Moment) -> npt.NDArray[np.float64]:
    ring = m.struck((1250, 0.6, 14), (1875, 0.5, 17), (2437, 0.4, 22), (2937, 0.3, 30))
    return ring + 0.5 * m.noise() * np.exp(-300 * m.since_s)


def _dog(m: Moment) -> npt.NDArray[np.float64]:
    def growl(hz: float) -> npt.NDArray[np.float64]:
        base = on_grid(hz * m.voice.pitch) / m.voice.pitch
        return sum((m.tone(k * base) / k**0.7 for k in range(1, 8)), np.zeros_like(m.since_s))

    falling = np.clip(m.since_s / 0.08, 0, 1)
    throat = (1 - falling) * growl(437) + falling * growl(312)
    return (throat + 0.5 * m.noise(3)) * np.clip(1 - m.since_s / 0.2, 0, 1) ** 0.7


def _lamp(m: Moment) -> npt.NDArray[np.float64]:
    return m.tone(1000) + 0.3 * m.tone(3000)


def _tap(m: Moment) -> npt.NDArray[np.float64]:
    return m.sung((687, 937, 1250, 1687), 0.03) * np.exp(-12 * m.since_s)


def _bell(m: Moment) -> npt.NDArray[np.float64]:
    fade = np.clip((0.45 - m.since_s) / 0.1, 0, 1)
    return fade * m.struck((500, 0.7, 5), (1062, 0.6, 7), (1250, 0.5, 8), (1562, 0.35, 9), (2062, 0.3, 12))


def _drum(m: Moment) -> npt.NDArray[np.float64]:
    return 0.8 * m.noise() * np.exp(-26 * m.since_s) + m.struck((187, 0.8, 30))


def _bird(m: Moment) -> npt.NDArray[np.float64]:
    return m.sung((2250, 1750, 2250, 1750), 0.04) * np.exp(-10 * m.since_s)


SOUNDS: dict[str, tuple[float, Callable[[Moment], npt.NDArray[np.float64]]]] = {
    "ball": (0.25, _ball),
    "hammer": (0.35, _hammer),
    "dog": (0.2, _dog),
    "lamp": (0.2, _lamp),
    "tap": (0.12, _tap),
    "bell": (0.45, _bell),
    "drum": (0.2, _drum),
    "bird": (0.16, _bird),
}
"""Kind → length in seconds and the function that makes its sound."""


def one_sound(kind: str, voice: Voice, start: int) -> Sound:
    """One event of a kind that begins at sample `start`, (n,) float32, with its peak at the voice's level."""
    seconds, make = SOUNDS[kind]
    count = round(seconds * RATE_HZ)
    since_s = np.arange(count) / RATE_HZ
    sound = make(Moment(voice, since_s, since_s + start / RATE_HZ))
    sound = sound * np.minimum(1, since_s / ATTACK_S) * np.minimum(1, since_s[::-1] / RELEASE_S)
    out: Sound = (sound * (voice.level / np.abs(sound).max())).astype(np.float32)
    return out


def soundtrack(kind: str, voice: Voice, events_s: npt.NDArray[np.float64], samples: int) -> Sound:
    """All events of one source, (samples,) float32 in [-1, 1]; a new event cuts off the previous one."""
    sound = np.zeros(samples, np.float32)
    starts = [round(event * RATE_HZ) for event in events_s]
    for start, following in zip(starts, [*starts[1:], samples], strict=True):
        one = one_sound(kind, voice, start)[: following - start]
        sound[start : start + one.size] = one
    return sound
