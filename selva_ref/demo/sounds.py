"""What the things of the demo's world sound like: one short sound an event, its start sharp, its end within 0.45 s.

Each is drawn with its own pitch and loudness, so that no two clips sound alike. Shapes: n samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Sound = npt.NDArray[np.float32]

RATE_HZ = 16_000
ATTACK_S = 0.002


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How one source sounds throughout a clip."""

    pitch: float
    """Factor on every frequency of its kind."""
    level: float
    """Peak of a sound, of full scale."""
    grain: int
    """Seed of the noise in it."""


def draw_voice(rng: np.random.Generator) -> Voice:
    """A voice from the range the demo's world knows."""
    return Voice(
        pitch=float(rng.uniform(0.88, 1.14)), level=float(rng.uniform(0.35, 0.7)), grain=int(rng.integers(2**31))
    )


def _time(seconds: float) -> npt.NDArray[np.float64]:
    return np.arange(round(seconds * RATE_HZ)) / RATE_HZ


def _partials(time_s: npt.NDArray[np.float64], pitch: float, partials: tuple[tuple[float, float, float], ...]) -> Sound:
    """Sum of damped sines, each (Hz, level, decay per second)."""
    return sum(
        level * np.sin(2 * np.pi * hz * pitch * time_s) * np.exp(-decay * time_s) for hz, level, decay in partials
    )


def _sweep(time_s: npt.NDArray[np.float64], from_hz: float, to_hz: float) -> Sound:
    """A sine whose frequency glides from one end to the other."""
    hz = from_hz * (to_hz / from_hz) ** (time_s / time_s[-1])
    return np.sin(2 * np.pi * np.cumsum(hz) / RATE_HZ)


def _noise(voice: Voice, time_s: npt.NDArray[np.float64], smooth: int = 1) -> Sound:
    noise = np.random.default_rng(voice.grain).standard_normal(time_s.size)
    return np.convolve(noise, np.ones(smooth) / np.sqrt(smooth), "same")


def _ball(voice: Voice) -> Sound:
    t = _time(0.25)
    return _partials(t, voice.pitch, ((130, 1.0, 22), (262, 0.5, 30), (410, 0.25, 45))) + 0.15 * _noise(
        voice, t, 6
    ) * np.exp(-220 * t)


def _hammer(voice: Voice) -> Sound:
    t = _time(0.35)
    ring = _partials(t, voice.pitch, ((1850, 0.6, 14), (2930, 0.5, 17), (4310, 0.4, 22), (5620, 0.3, 30)))
    return ring + 0.5 * _noise(voice, t) * np.exp(-300 * t)


def _dog(voice: Voice) -> Sound:
    t = _time(0.2)
    fall = 1 + 0.35 * np.exp(-((t / 0.06) ** 2))
    phase = 2 * np.pi * np.cumsum(330 * voice.pitch * fall) / RATE_HZ
    growl = sum(np.sin(k * phase) / k**0.7 for k in range(1, 8))
    return (growl + 0.5 * _noise(voice, t, 3)) * np.sin(np.pi * np.minimum(1, t / 0.2) ** 0.5) ** 1.5


def _lamp(voice: Voice) -> Sound:
    t = _time(0.2)
    return (np.sin(2 * np.pi * 1000 * voice.pitch * t) + 0.3 * np.sin(2 * np.pi * 3000 * voice.pitch * t)) * np.minimum(
        1, (0.2 - t) / 0.02
    )


def _tap(voice: Voice) -> Sound:
    t = _time(0.12)
    return _sweep(t, 700 * voice.pitch, 1500 * voice.pitch) * np.exp(-28 * t)


def _bell(voice: Voice) -> Sound:
    t = _time(0.45)
    fade = np.minimum(1, (0.45 - t) / 0.1)
    return fade * _partials(
        t, voice.pitch, ((523, 0.7, 5), (1046, 0.6, 7), (1256, 0.5, 8), (1570, 0.35, 9), (2090, 0.3, 12))
    )


def _drum(voice: Voice) -> Sound:
    t = _time(0.2)
    return 0.8 * _noise(voice, t) * np.exp(-26 * t) + _partials(t, voice.pitch, ((190, 0.8, 30),))


def _bird(voice: Voice) -> Sound:
    t = _time(0.16)
    return _sweep(t, 5200 * voice.pitch, 3100 * voice.pitch) * np.sin(np.pi * (t / 0.16) ** 0.6) ** 0.7


SOUNDS: dict[str, Callable[[Voice], Sound]] = {
    "ball": _ball,
    "hammer": _hammer,
    "dog": _dog,
    "lamp": _lamp,
    "tap": _tap,
    "bell": _bell,
    "drum": _drum,
    "bird": _bird,
}


def one_sound(kind: str, voice: Voice) -> Sound:
    """One event of a kind, (n,) float32, its peak at the voice's level."""
    sound = np.asarray(SOUNDS[kind](voice))
    edges = np.minimum(1, np.arange(sound.size) / (ATTACK_S * RATE_HZ)) * np.minimum(
        1, np.arange(sound.size)[::-1] / 160
    )
    sound = sound * edges
    return (sound * (voice.level / np.abs(sound).max())).astype(np.float32)


def soundtrack(kind: str, voice: Voice, events_s: npt.NDArray[np.float64], samples: int) -> Sound:
    """Every event of one source, (samples,) float32 in [-1, 1]; a new event cuts the one before it short."""
    sound, one = np.zeros(samples, np.float32), one_sound(kind, voice)
    starts = [round(event * RATE_HZ) for event in events_s]
    for start, following in zip(starts, [*starts[1:], samples], strict=True):
        n = min(one.size, following - start)
        sound[start : start + n] = one[:n]
    return sound
