"""Runs the methods on the films and adds up what is measured, for every length of film.

The cost of a stem is the process's CPU time, of all its threads, from the file to the sound. It is divided by the
seconds of all stems. The short path is the same on scenes of 4.16 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from selva_bench.long_form.films import Film, scenes
from selva_bench.long_form.measures import Measures, Tally, measure
from selva_bench.long_form.methods import Method, Sounds, one_pass
from selva_ref.demo.evaluation.events import Times
from selva_ref.demo.world.kinds import KINDS, prompt
from selva_runtime import Session

SCENES = "scenes like those of {:g} s"
"""Label of a row that the films of that length are compared with."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The stems of one film by one method."""

    film: Film
    audio: Sounds
    """(2 takes, n)."""
    joins_s: Times
    measures: Measures
    cpu_s: float


def run(session: Session, method: Method, film: Film, folder: Path, steps: int | None, takes: int = 1) -> Result:
    """Makes and measures `takes` stems of each source of a film. The file is removed afterwards."""
    path = film.write(folder)
    begun_s = time.process_time()
    audio, joins_s = method.make(session, film, path, steps, takes)
    cpu_s = time.process_time() - begun_s
    path.unlink()
    left, right = (source.events_s for source in film.scene.sources)
    each_s = [(left, right)] * takes + [(right, left)] * takes
    return Result(
        film=film,
        audio=audio,
        joins_s=joins_s,
        measures=Measures.total(
            [
                measure(sound, *events_s, joins_s, 2 * takes * film.number + row)
                for row, (sound, events_s) in enumerate(zip(audio, each_s, strict=True))
            ]
        ),
        cpu_s=cpu_s,
    )


def warm_up(session: Session, folder: Path) -> None:
    """Encodes all prompts and makes two stems, so that no later time contains what is done only once."""
    film = Film(number=0)
    clip = session.encode(film.write(folder), duration_s=film.duration_s)
    for kind in KINDS:
        session.generate(clip, [prompt(kind)], steps=1)
    session.generate(clip, film.prompts)


def run_all(
    session: Session,
    methods: Mapping[str, Method],
    films: Sequence[Film],
    folder: Path,
    *,
    scenes_each: int,
    steps: int | None,
    takes: int = 1,
    report: Callable[[str, Result], object],
) -> Iterator[dict[str, Any]]:
    """Yields a row for the scenes of each length, then one for every method and length. `report` gets each result."""
    warm_up(session, folder)
    groups = [list(group) for _, group in groupby(films, lambda film: film.duration_s)]
    short = Method(make=one_pass, longest_s=np.inf)
    plan = [(SCENES.format(group[0].duration_s), short, scenes(group, scenes_each)) for group in groups]
    for name, method in methods.items():
        plan += [(name, method, group) for group in groups if group[0].duration_s <= method.longest_s]
    short_cost: float | None = None
    for name, method, group in plan:
        results = []
        for film in group:
            results.append(run(session, method, film, folder, steps, takes))
            report(name, results[-1])
        seconds = sum(len(result.audio) * result.film.duration_s for result in results)
        cost = sum(result.cpu_s for result in results) / seconds
        short_cost = cost if short_cost is None else short_cost
        yield {
            "method": name,
            "duration_s": group[0].duration_s,
            "films": len(group),
            **numbers(Measures.total([result.measures for result in results])),
            "cpu_s_per_s": round(cost, 4),
            "cpu_ratio": round(cost / short_cost, 3),
        }


def numbers(found: Measures) -> dict[str, Any]:
    """The numbers of a row of the table, and the counts behind them."""
    score = found.score
    return {
        "f1": round(score.f1, 4),
        "precision": round(score.hits / max(1, score.heard), 4),
        "recall": round(score.hits / max(1, score.true), 4),
        "offset_ms": round(score.offset_ms, 2),
        "leak": round(score.leak, 4),
        "missed_near_joins": _numbers(found.missed_near),
        "missed_away": _numbers(found.missed_away),
        "step_at_joins": _numbers(found.joins),
        "step_at_controls": _numbers(found.controls),
        "drift": None if found.drift is None else round(found.drift, 3),
        "distance_far": _numbers(found.far),
        "distance_close": _numbers(found.close),
        "counts": {name: count for name, count in asdict(score).items() if isinstance(count, int)},
    }


def _numbers(tally: Tally) -> dict[str, float | None]:
    return {"mean": None if tally.mean is None else round(tally.mean, 4), "count": tally.count}
