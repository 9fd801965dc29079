"""Detects the sounds in a stem and compares their times with those of the true events.

An onset is a sudden rise in many mel bands at once (spectral flux on compressed magnitudes), detected from the sound
alone.
Shapes: n samples at 16 kHz, F frames of 8 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from selva_ref.demo.world.sounds import RATE_HZ
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.presets import AUDIO_16K

TOLERANCE_S = 0.08
"""Largest distance between a heard onset and a true one."""
HOP = 128
SILENCE = 0.01
"""A stem with a smaller peak counts as empty."""
FLOOR = 0.02
"""Magnitudes are compressed above this share of the largest one."""
RISE = 0.5
"""Smallest rise that counts as an onset, in decades: the mean of the `BANDS` bands that rise most."""
BANDS = 3
APART_FRAMES = 12
"""If two onsets are closer than this (96 ms), only the stronger counts."""

Times = npt.NDArray[np.float64]


def magnitudes(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mel magnitudes (40, F): windows of 32 ms, one every 8 ms."""
    mel = _MEL(torch.from_numpy(np.ascontiguousarray(audio))[None])[0]
    out: npt.NDArray[np.float32] = 10 ** mel.numpy()
    return out


def onsets(audio: npt.NDArray[np.float32]) -> Times:
    """Times of the sounds in `audio` (n,), seconds, ascending."""
    if np.abs(audio).max() < SILENCE:
        return np.empty(0)
    mel = magnitudes(audio)
    level = np.log10(mel / mel.max() + FLOOR)
    before = np.pad(level, ((0, 0), (4, 0)), constant_values=np.log10(FLOOR))
    recent = np.max([before[:, k : k + level.shape[1]] for k in range(3)], axis=0)  # 2 to 4 frames ago
    flux = np.sort(np.maximum(0, level - recent), axis=0)[-BANDS:].mean(0)
    strongest = [flux[max(0, i - APART_FRAMES) : i + APART_FRAMES + 1].max() for i in range(flux.size)]
    peaks = np.flatnonzero((flux >= RISE) & (flux == strongest))
    return (peaks * HOP + HOP / 2) / RATE_HZ


_MEL = MelSpectrogram(
    replace(AUDIO_16K, n_fft=512, hop=HOP, mel_bands=40, vocoder_rates=(HOP,), vocoder_kernels=(2 * HOP,))
)


def matched(heard_s: Times, true_s: Times) -> list[tuple[int, int]]:
    """Pairs (heard, true) within the tolerance, nearest first, each used once."""
    gaps = np.abs(heard_s[:, None] - true_s[None])
    pairs: list[tuple[int, int]] = []
    for flat in np.argsort(gaps, axis=None):
        i, j = divmod(int(flat), max(1, true_s.size))
        if gaps[i, j] > TOLERANCE_S:
            break
        if all(i != a and j != b for a, b in pairs):
            pairs.append((i, j))
    return pairs


@dataclass(frozen=True, kw_only=True)
class Score:
    """Counts of one stem or, summed, of many."""

    hits: int = 0
    heard: int = 0
    true: int = 0
    offset_s: float = 0.0
    """Sum of |heard - true| over the hits, seconds."""
    leaks: int = 0
    """Events of the other source at which an onset is heard that does not belong to the target."""
    others: int = 0
    """Events of the other source that are far enough from the target's in time."""
    right_kind: int = 0
    stems: int = 0

    @classmethod
    def total(cls, scores: Sequence[Score]) -> Score:
        """Adds up the counts."""
        return cls(**{name: sum(getattr(score, name) for score in scores) for name in cls.__dataclass_fields__})

    @property
    def f1(self) -> float:
        """2 hits / (heard + true)."""
        return 2 * self.hits / max(1, self.heard + self.true)

    @property
    def leak(self) -> float:
        """Share of the other source's events that are heard."""
        return self.leaks / max(1, self.others)

    @property
    def offset_ms(self) -> float:
        """Mean distance between a hit and its event."""
        return 1000 * self.offset_s / max(1, self.hits)

    @property
    def kind(self) -> float:
        """Share of stems that sound like the requested kind."""
        return self.right_kind / max(1, self.stems)


def score(audio: npt.NDArray[np.float32], true_s: Times, other_s: Times, right_kind: bool) -> Score:
    """Compares a stem with its source's events, and counts events of the other source in it."""
    heard_s = onsets(audio)
    pairs = matched(heard_s, true_s)
    spare_s = np.delete(heard_s, [i for i, _ in pairs])
    apart = other_s[(np.abs(other_s[:, None] - true_s[None]) > 2 * TOLERANCE_S).all(1)]
    return Score(
        hits=len(pairs),
        heard=heard_s.size,
        true=true_s.size,
        offset_s=float(sum(abs(heard_s[i] - true_s[j]) for i, j in pairs)),
        leaks=len(matched(spare_s, apart)),
        others=apart.size,
        right_kind=int(right_kind),
        stems=1,
    )
