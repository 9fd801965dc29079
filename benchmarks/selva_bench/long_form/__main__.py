"""Measures stems of long films by the demo model: `python -m selva_bench.long_form --work FOLDER`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import selva_runtime
from selva_bench import machine
from selva_bench.long_form.films import FILMS, MEDIUM
from selva_bench.long_form.methods import METHODS, TRIALS
from selva_bench.long_form.report import draw, line, table
from selva_bench.long_form.run import Result, run_all
from selva_bundle.atomic import atomic_write
from selva_runtime import Session

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), required=True, help="For one film at a time.")
@click.option("--out", type=_FILE, help="Also kept as JSON.")
@click.option("--picture", type=_FILE, help="A PNG of one minute of a stem.")
@click.option("--method", "names", type=click.Choice(list(METHODS)), multiple=True, help="[default: all]")
@click.option("--trials", is_flag=True, help="Other anchors, overlaps and guards instead, on films of 24 s.")
@click.option("--shortest", type=click.FloatRange(4), default=4, show_default=True, help="Leave out shorter films, s.")
@click.option("--longest", type=click.FloatRange(4), default=600, show_default=True, help="Leave out longer films, s.")
@click.option("--scenes", type=click.IntRange(1), default=4, show_default=True, help="Scenes for each film.")
@click.option("--takes", type=click.IntRange(1), default=1, show_default=True, help="Stems of each source.")
@click.option("--steps", type=click.IntRange(1), help="[default: the bundle's]")
@click.option("--backend", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Waiting threads cost time.")
def main(
    work: Path,
    out: Path | None,
    picture: Path | None,
    names: tuple[str, ...],
    trials: bool,
    shortest: float,
    longest: float,
    scenes: int,
    takes: int,
    steps: int | None,
    backend: str,
    threads: int,
) -> None:
    """Stems of composed films of 24 s, 82 s and 10 minutes: events, misses at joins, steps at joins, voice and cost."""
    work.mkdir(parents=True, exist_ok=True)
    session = Session(Path(selva_runtime.__file__).with_name("demo_bundle"), backend=backend, threads=threads)
    methods = TRIALS if trials else {name: METHODS[name] for name in names or METHODS}
    longest = min(longest, 30) if trials else longest
    films = [film for film in FILMS if shortest <= film.duration_s <= longest]

    def report(name: str, result: Result) -> None:
        click.echo(line(name, result), err=True)
        if picture is not None and name == next(iter(methods)) and result.film == DRAWN:
            with atomic_write(picture) as temporary:
                draw(result, 0, temporary)

    rows = list(run_all(session, methods, films, work, scenes_each=scenes, takes=takes, steps=steps, report=report))
    click.echo(table(rows))
    if out is not None:
        with atomic_write(out) as temporary:
            temporary.write_text(
                json.dumps(document(session, rows, steps, takes, threads), indent=1) + "\n", encoding="utf-8"
            )


DRAWN = next(film for film in FILMS if film.frames == MEDIUM)
"""The film whose first stem is drawn, by the first method."""


def document(
    session: Session, rows: list[dict[str, Any]], steps: int | None, takes: int, threads: int
) -> dict[str, Any]:
    """The results with all that they depend on."""
    return {
        "command": "python -m selva_bench.long_form",
        "machine": machine.describe(),
        "setting": {
            "backend": session.info.backend,
            "threads": threads,
            "steps": steps or session.info.defaults.steps,
            "takes": takes,
            "guidance": session.info.defaults.guidance,
            "films": {film.name: [source.kind for source in film.scene.sources] for film in FILMS},
        },
        "rows": rows,
    }


if __name__ == "__main__":
    main()
