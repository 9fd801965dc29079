"""The ways to make stems of a whole film, from its file.

Each gets a session, a film and its path, and returns the stems of the film's two sources and the times of their joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selva_bench.long_form.films import Film
from selva_bundle.lengths import LongForm
from selva_ref.demo.evaluation.events import Times
from selva_ref.demo.world.scenes import FPS, FRAMES
from selva_ref.model.presets import PRESETS
from selva_ref.pipeline import sequence_rules
from selva_runtime import Session
from selva_runtime.results import Clip
from selva_runtime.session import ONE_PASS
from selva_runtime.video_part import NO_CUTS
from selva_runtime.windows import Grid, joins_s, plan

Sounds = npt.NDArray[np.float32]
Make = Callable[[Session, Film, Path, int | None, int], tuple[Sounds, Times]]
"""(session, film, path, steps, takes) → stems (2 takes, n), those of the first source first, and the seconds of their
joins."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to make stems."""

    make: Make
    longest_s: float
    """Longer films are left out."""


def windows(
    session: Session, film: Film, path: Path, steps: int | None, takes: int = 1, *, form: LongForm | None = None
) -> tuple[Sounds, Times]:
    """Makes the stems in windows that continue each other; `form` None means the bundle's."""
    form = session.info.long_form if form is None else form
    clip = session.encode(path, cuts=NO_CUTS)
    stems = session.generate(clip, film.prompts, seed=film.number, steps=steps, takes=takes, long=form)
    return np.stack([stem.audio for stem in stems]), joins(clip, form)


def joins(clip: Clip, form: LongForm) -> Times:
    """Seconds at which the stems of a clip go from one window to the next."""
    rules = sequence_rules(PRESETS["demo"])
    grid = Grid(rules=rules, form=form, shots=clip.shots, latent=rules.lengths(clip.duration_s).latent)
    return np.array(joins_s(plan(grid), rules))


def one_pass(session: Session, film: Film, path: Path, steps: int | None, takes: int = 1) -> tuple[Sounds, Times]:
    """Makes the stems in one pass over the whole film."""
    clip = session.encode(path, duration_s=film.duration_s)
    stems = session.generate(clip, film.prompts, seed=film.number, steps=steps, takes=takes, long=ONE_PASS)
    return np.stack([stem.audio for stem in stems]), np.empty(0)


def hard_cut(session: Session, film: Film, path: Path, steps: int | None, takes: int = 1) -> tuple[Sounds, Times]:
    """Makes a stem for every 4.16 s by itself, each from other noise, and puts them end to end.

    This control has two faults that the measures must show: sounds break off at joins, and the voice changes.
    """
    starts = range(0, film.frames, FRAMES)
    parts = []
    for index, start in enumerate(starts):
        duration_s = min(FRAMES, film.frames - start) / FPS
        clip = session.encode(path, start_s=start / FPS, duration_s=duration_s)
        stems = session.generate(clip, film.prompts, seed=1000 * film.number + index, steps=steps, takes=takes)
        parts.append(np.stack([stem.audio for stem in stems]))
    return np.concatenate(parts, axis=1), np.array(starts[1:]) / FPS


METHODS = {
    "windows": Method(make=windows, longest_s=600),
    "one pass": Method(make=one_pass, longest_s=30),
    "hard cut": Method(make=hard_cut, longest_s=90),
}


def _trial(anchor: int, overlap: int, guard: float) -> tuple[str, Method]:
    form = LongForm(window_segments=12, anchor_segments=anchor, overlap_segments=overlap, guard=guard)
    return f"anchor {anchor}, overlap {overlap}, guard {guard:g}", Method(
        make=partial(windows, form=form), longest_s=30
    )


TRIALS = dict(
    [
        *(_trial(anchor, 2, 0.25) for anchor in (0, 2, 3, 4, 5, 6)),
        *(_trial(5, overlap, 0.25) for overlap in (1, 3)),
        *(_trial(5, 2, guard) for guard in (0.0, 0.4)),
    ]
)
"""Anchors, overlaps and guards of windows, in segments, on the shortest films."""
