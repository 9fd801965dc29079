"""What is measured on a stem, from its sound, its source's events and the places of its joins alone.

All numbers are sums and counts, so those of several stems can be added up. Shapes: n samples, F frames, E events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from selva_ref.demo.evaluation.events import FLOOR, HOP, Score, Times, magnitudes, matched, onsets, score
from selva_ref.demo.world.sounds import RATE_HZ
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.presets import PRESETS

NEAR_S = 0.5
"""An event at most this far from a join is near it. Controls are further from all joins."""
ONSET_S = 0.1
"""Joins and controls this near to a true event do not count: the event is a step itself."""
CONTROLS_PER_S = 4
STEP_FRAMES = 2
"""Mel frames on each side of a join. The window of a frame reaches two frames beyond it."""
EVENT_S = 0.15
"""The part of an event whose spectrum is compared. Events are at least 0.5 s apart."""
CLOSE_S, FAR_S = 1.5, 6.0

_MEL = MelSpectrogram(PRESETS["demo"].audio)
Sound = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """A sum, and how many values are in it."""

    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, values: Sequence[float] | npt.NDArray[np.floating] | npt.NDArray[np.bool_]) -> Tally:
        """Adds up some values."""
        return cls(total=float(np.sum(values)), count=len(values))

    def __add__(self, other: Tally) -> Tally:
        return Tally(total=self.total + other.total, count=self.count + other.count)

    @property
    def mean(self) -> float | None:
        """The mean; None without values."""
        return self.total / self.count if self.count else None


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of one stem or, added up, of many."""

    score: Score
    missed_near: Tally
    """Misses among the true events near a join."""
    missed_away: Tally
    joins: Tally
    """Log10-mel steps at joins, decades."""
    controls: Tally
    far: Tally
    """Spectral distances of events more than `FAR_S` apart, decades."""
    close: Tally
    """Of events less than `CLOSE_S` apart."""

    @classmethod
    def total(cls, parts: Sequence[Measures]) -> Measures:
        """Adds up the measures of several stems."""
        sums = {
            field.name: sum((getattr(part, field.name) for part in parts), Tally())
            for field in fields(cls)
            if field.name != "score"
        }
        return cls(score=Score.total([part.score for part in parts]), **sums)

    @property
    def drift(self) -> float | None:
        """How many times further apart in spectrum events are that are far apart in time; 1 means one voice."""
        far, close = self.far.mean, self.close.mean
        return far / close if far is not None and close else None


def measure(audio: Sound, true_s: Times, other_s: Times, joins_s: Times, seed: int) -> Measures:
    """Measures a stem (n,) whose source sounds at `true_s`. The seed draws the controls."""
    heard_s = onsets(audio)
    pairs = matched(heard_s, true_s)
    hit = np.isin(np.arange(true_s.size), [j for _, j in pairs])
    near = distance_s(true_s, joins_s) <= NEAR_S
    step = step_meter(audio)
    far, close = voice_distances(audio, np.sort(heard_s[[i for i, _ in pairs]]))
    return Measures(
        score=score(audio, true_s, other_s, right_kind=True),
        missed_near=Tally.of(~hit[near]),
        missed_away=Tally.of(~hit[~near]),
        joins=Tally.of([step(place_s) for place_s in joins_s[distance_s(joins_s, true_s) > ONSET_S]]),
        controls=Tally.of([step(place_s) for place_s in control_places(audio.size, true_s, joins_s, seed)]),
        far=far,
        close=close,
    )


def distance_s(places_s: Times, marks_s: Times) -> Times:
    """Distance of each place to the nearest mark; infinite without marks."""
    gaps = np.abs(places_s[:, None] - marks_s[None])
    nearest: Times = gaps.min(1, initial=np.inf)
    return nearest


def control_places(samples: int, true_s: Times, joins_s: Times, seed: int) -> Times:
    """Draws places away from joins, from events and from the stem's ends."""
    duration_s = samples / RATE_HZ
    drawn = np.random.default_rng(seed).uniform(NEAR_S, duration_s - NEAR_S, round(CONTROLS_PER_S * duration_s))
    return drawn[(distance_s(drawn, joins_s) > NEAR_S) & (distance_s(drawn, true_s) > ONSET_S)]


def step_meter(audio: Sound) -> Callable[[float], float]:
    """Returns a function that gives the log10-mel step at a time in seconds, in decades.

    The step between two frames of 16 ms is the mean of |difference| over the 80 mel bands. The step at a time is the
    mean of those between the frames around it, `STEP_FRAMES` on each side.
    """
    log_mel = _MEL(torch.from_numpy(np.ascontiguousarray(audio))[None])[0].numpy()
    steps = np.abs(np.diff(log_mel, axis=1)).mean(0)
    rate_hz = RATE_HZ / _MEL.config.hop

    def at(place_s: float) -> float:
        following = round(place_s * rate_hz)  # the first frame after the time
        return float(steps[max(0, following - STEP_FRAMES) : following + STEP_FRAMES - 1].mean())

    return at


def voice_distances(audio: Sound, heard_s: Times) -> tuple[Tally, Tally]:
    """Spectral distances between the events heard at `heard_s`: of those far apart, and of those close together.

    The spectrum of an event is its mel magnitude (40 bands), averaged over `EVENT_S`, divided by its largest band, so
    that loudness does not count, then log10, above a floor of 2 %. A distance is the mean |difference| of the bands.
    """
    spectra = voices(magnitudes(audio), heard_s)
    far, close = Tally(), Tally()
    for index in range(len(spectra)):
        apart_s = heard_s[index + 1 :] - heard_s[index]
        distances = np.abs(spectra[index + 1 :] - spectra[index]).mean(1)
        far += Tally.of(distances[apart_s > FAR_S])
        close += Tally.of(distances[apart_s < CLOSE_S])
    return far, close


def voices(mel: Sound, heard_s: Times) -> Sound:
    """Returns the spectrum of every event, (E, 40), from mel magnitudes (40, F)."""
    frames = round(EVENT_S * RATE_HZ / HOP)
    spectra = np.empty((heard_s.size, len(mel)), np.float32)
    for index, start in enumerate((heard_s * RATE_HZ / HOP).astype(int)):
        event = mel[:, start : start + frames].mean(1)
        spectra[index] = np.log10(event / event.max() + FLOOR)
    return spectra
