"""The ways to make stems of a whole film, from its file.

Each gets a session, a film and its path, and returns the stems of the film's two sources and the times of their joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selva_bench.long_form.films import Film
from selva_ref.demo.evaluation.events import Times
from selva_ref.demo.world.scenes import FPS, FRAMES
from selva_runtime import Session

Sounds = npt.NDArray[np.float32]
Make = Callable[[Session, Film, Path, int | None], tuple[Sounds, Times]]
"""(session, film, path, steps) → stems (2, n) and the seconds of their joins."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to make stems."""

    make: Make
    longest_s: float
    """Longer films are left out."""


def one_pass(session: Session, film: Film, path: Path, steps: int | None) -> tuple[Sounds, Times]:
    """Makes the stems in one pass over the whole film."""
    clip = session.encode(path, duration_s=film.duration_s)
    stems = session.generate(clip, film.prompts, seed=film.number, steps=steps)
    return np.stack([stem.audio for stem in stems]), np.empty(0)


def hard_cut(session: Session, film: Film, path: Path, steps: int | None) -> tuple[Sounds, Times]:
    """Makes a stem for every 4.16 s by itself, each from other noise, and puts them end to end.

    This control has two faults that the measures must show: sounds break off at joins, and the voice changes.
    """
    starts = range(0, film.frames, FRAMES)
    parts = []
    for index, start in enumerate(starts):
        duration_s = min(FRAMES, film.frames - start) / FPS
        clip = session.encode(path, start_s=start / FPS, duration_s=duration_s)
        stems = session.generate(clip, film.prompts, seed=1000 * film.number + index, steps=steps)
        parts.append(np.stack([stem.audio for stem in stems]))
    return np.concatenate(parts, axis=1), np.array(starts[1:]) / FPS


METHODS = {
    "one pass": Method(make=one_pass, longest_s=30),
    "hard cut": Method(make=hard_cut, longest_s=90),
}
